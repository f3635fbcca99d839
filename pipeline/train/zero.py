"""The DeepSpeed engine: how a step goes through it. The only module that imports deepspeed; engine.py
alone imports this one, late, and zero_settings.py makes the configuration."""

from __future__ import annotations

import logging
import math

import deepspeed
import torch
from torch import nn

from pipeline.config import EngineSettings
from pipeline.train.fragments import Fragment, create_moments, refresh, set_updates, zero_fragments
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.optim import set_rate
from pipeline.train.world import World
from pipeline.train.zero_settings import check_version, configure

# The first init_distributed on a CPU would otherwise compile a shared-memory op with ninja, for
# minutes, while the other ranks wait. It serves inference only.
deepspeed.ops.__compatible_ops__ = {}
deepspeed.utils.logger.setLevel(logging.ERROR)


class ZeroEngine(Engine):
    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        settings: EngineSettings,
        shape: BatchShape,
        world: World,
    ) -> None:
        check_version(deepspeed.__version__)
        configuration = configure(settings, shape, clip_norm)
        self._engine, _, _, _ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=configuration, dist_init_required=False
        )
        self.module = module
        self.optimizer = self._engine.optimizer.optimizer
        self.updates = 0
        self._world = world
        create_moments(self._engine.optimizer)

    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        output: torch.Tensor = self._engine(images, *more)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        # DeepSpeed takes the mean over ranks; our losses are shares that must be added up.
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self, rate: float) -> bool:
        set_rate(self.optimizer, rate)
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        self.updates += applied
        return applied

    def grad_norm(self) -> float:
        norm = self._engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def fragments(self) -> list[Fragment]:
        return zero_fragments(self.module, self._engine.optimizer)

    def loaded(self, updates: int) -> None:
        set_updates(self.optimizer, updates)
        self.updates = updates
        refresh(self._engine.optimizer)

    def close(self) -> None:
        self._engine.destroy()

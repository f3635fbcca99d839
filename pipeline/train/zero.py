"""The DeepSpeed engine: how a step goes through it. The only module that imports deepspeed; engine.py
alone imports this one, late, and zero_settings.py makes the configuration."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import deepspeed
import torch
from torch import nn

from pipeline.config import EngineSettings
from pipeline.errors import EnvironmentUnfit
from pipeline.train.fragments import (
    Fragment,
    create_moments,
    keep_at_lowest_scale,
    loss_scaler,
    refresh,
    replicated_fragments,
    set_loss_scaler,
    set_updates,
    share_replicas,
    write_masters,
    zero_fragments,
)
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.optim import canonical, set_rate
from pipeline.train.plain import PlainEngine
from pipeline.train.world import World
from pipeline.train.zero_settings import check_version, configure

# The first init_distributed on a CPU would otherwise compile a shared-memory op with ninja, for
# minutes, while the other ranks wait. It serves inference only.
deepspeed.ops.__compatible_ops__ = {}
deepspeed.utils.logger.setLevel(logging.ERROR)
# It collects garbage and prints the host's memory, three times for each group of parameters.
deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *_, **__: None

# What parameters and activations are where DeepSpeed keeps a rounded working copy of float32 masters.
WORKING_COPY = {"bf16_params": torch.bfloat16, "fp16": torch.float16}
LINEAR = torch.nn.functional.linear


class ZeroEngine(Engine):
    """Stages 1 to 3."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        settings: EngineSettings,
        shape: BatchShape,
        world: World,
    ) -> None:
        if settings.precision == "fp16":
            check_float16(world)
        self._dtype = WORKING_COPY.get(settings.precision, torch.float32)
        rounds = settings.rounds_parameters and not any(hasattr(p, "ds_id") for p in module.parameters())
        # DeepSpeed gives the parameters other memory; what they had stays as it is.
        weights = {canonical(name): p.detach() for name, p in module.named_parameters()} if rounds else {}
        self._engine = _initialise(module, optimizer, clip_norm, settings, shape, world)
        self.module = module
        self.optimizer = self._engine.optimizer.optimizer
        self.updates = 0
        self._world = world
        create_moments(self._engine.optimizer)
        keep_at_lowest_scale(self._engine.optimizer)
        if rounds:
            write_masters(self.fragments(), weights)
            refresh(self._engine.optimizer)

    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        output: torch.Tensor = self._engine(images.to(self._dtype), *more)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        # DeepSpeed takes the mean over ranks; our losses are shares that must be added up.
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)
        if not last:
            self._engine.step()  # counts the micro-batch, changes nothing

    def step(self, rate: float, *, finite: bool = True) -> bool:
        set_rate(self.optimizer, rate)
        before = self.loss_scaler()
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        self.updates += applied
        self.overflowed = False
        if before is not None and not applied:
            if finite:
                self.overflowed = _lowered(before, self.loss_scaler())
            else:
                set_loss_scaler(self._engine.optimizer, before)
        return applied

    def grad_norm(self) -> float:
        norm = self._engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

    def fragments(self) -> list[Fragment]:
        return zero_fragments(self.module, self._engine.optimizer)

    def loss_scaler(self) -> dict[str, float] | None:
        return loss_scaler(self._engine.optimizer)

    def loaded(self, updates: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        set_updates(self.optimizer, updates)
        self.updates = updates
        if loss_scaler is not None and self.loss_scaler() is not None:
            set_loss_scaler(self._engine.optimizer, loss_scaler)
        refresh(self._engine.optimizer)

    def close(self) -> None:
        self._engine.destroy()
        # Stage 3 replaces it for the whole process, and bf16 rounds otherwise in its own.
        torch.nn.functional.linear = LINEAR


class ReplicatedEngine(PlainEngine):
    """Stage 0: DeepSpeed adds up gradients over ranks; norm, clipping and what is not finite are ours."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        clip_norm: float | None,
        settings: EngineSettings,
        shape: BatchShape,
        world: World,
    ) -> None:
        self._engine = _initialise(module, optimizer, clip_norm, settings, shape, world)
        self._world = world
        super().__init__(module, optimizer, clip_norm, settings.precision)

    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        output: torch.Tensor = self._engine(images, *more)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self._world.size, scale_wrt_gas=False)

    def _may_update(self, finite: bool) -> bool:
        # The sums are the same on all ranks; that they are is not left to the communication library.
        return not self._world.any(not finite)

    def _update(self) -> None:
        self._engine.step()

    def _forget_gradients(self) -> None:
        self._engine.zero_grad()

    def fragments(self) -> list[Fragment]:
        return replicated_fragments(self.module, self.optimizer, self._world.rank, self._world.size)

    def loaded(self, updates: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        super().loaded(updates)
        share_replicas(self.module, self.optimizer, self._world.size)

    def close(self) -> None:
        self._engine.destroy()


def _initialise(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
    settings: EngineSettings,
    shape: BatchShape,
    world: World,
) -> Any:
    """DeepSpeed's engine, as zero_settings.py configures it."""
    check_version(deepspeed.__version__)
    configuration = configure(settings, shape, clip_norm, gpu=world.device.type == "cuda")
    return deepspeed.initialize(
        model=module, optimizer=optimizer, config=configuration, dist_init_required=False
    )[0]


def partitioned(
    settings: EngineSettings, shape: BatchShape, clip_norm: float | None
) -> AbstractContextManager[Any]:
    """While inside, every module that is built is split over the ranks at once (stage 3)."""
    check_version(deepspeed.__version__)
    # Without a self-test nothing has told DeepSpeed of the ranks yet, and Init would count one.
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    context: AbstractContextManager[Any] = deepspeed.zero.Init(
        config_dict_or_path=configure(settings, shape, clip_norm)
    )
    return context


def check_float16(world: World) -> None:
    """DeepSpeed raises a bare ValueError; on a processor it asks oneDNN for float16 instructions."""
    if not deepspeed.accelerator.get_accelerator().is_fp16_supported():
        raise EnvironmentUnfit(
            f"engine.precision fp16, which DeepSpeed does not support on this {world.device.type}",
            "a GPU, or a processor with AVX512-FP16 or AMX-FP16",
            "set engine.precision to bf16 or float32",
        )


def _lowered(before: Mapping[str, float], after: Mapping[str, float] | None) -> bool:
    """Whether the loss scale, or the patience before it is lowered, went down."""
    return after is not None and any(after[name] < before[name] for name in ("cur_scale", "cur_hysteresis"))

"""The engine for one rank without DeepSpeed: plain PyTorch, float32 or bf16 autocast.

Parameters, gradients and moments stay float32. It is what the self-test compares others with, so it
does nothing clever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from pipeline.train.fragments import Fragment, replicated_fragments, set_updates
from pipeline.train.interface import Engine
from pipeline.train.optim import create_state, set_rate


class PlainEngine(Engine):
    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, clip_norm: float | None, precision: str
    ) -> None:
        self.module = module
        self.optimizer = optimizer
        self.updates = 0
        self._clip_norm = clip_norm
        self._autocast = precision == "bf16"
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._norm = math.nan
        for parameter in self._parameters:
            create_state(optimizer, parameter)

    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._autocast):
            output: torch.Tensor = self.module(images, *more)
        return output

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float, *, finite: bool = True) -> bool:
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._norm = norm.item()
        applied = self._may_update(math.isfinite(self._norm))
        if applied:
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)
            set_rate(self.optimizer, rate)
            self._update()
            self.updates += 1
        else:
            self._norm = math.inf  # as DeepSpeed says it
        self._forget_gradients()
        return applied

    def _may_update(self, finite: bool) -> bool:
        return finite

    def _update(self) -> None:
        self.optimizer.step()

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def grad_norm(self) -> float:
        return self._norm

    def fragments(self) -> list[Fragment]:
        return replicated_fragments(self.module, self.optimizer)

    def loaded(self, updates: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        set_updates(self.optimizer, updates)
        self.updates = updates

    def close(self) -> None:
        self._forget_gradients()

"""What computes a step, as the loop sees it; plain.py and zero.py are the two that do.

One step: `forward` and `backward` for each micro-batch, then `step`. The losses given to `backward`
are this rank's shares of the whole batch's loss (already divided by the weights of the whole batch
over all ranks), so they add up to it and no engine averages anything again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from pipeline.train.fragments import Fragment
from pipeline.train.shape import BatchShape as BatchShape


class Engine(ABC):
    """A model with its optimizer. Every method but `fragments` and `updates` is called by all ranks."""

    module: nn.Module  # names are canonical, parameters may be empty (ZeRO-3)
    optimizer: torch.optim.Optimizer  # its groups carry the rates
    updates: int  # updates applied so far, over all attempts
    # The last step was left out because float16 gradients overflowed, and the loss scale was lowered for it.
    overflowed: bool = False

    @abstractmethod
    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        """What the module makes of normalised images (n, 3, H, W): logits (n, K), or what its objective
        says; in training mode unless `training(False)` was called."""

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch's share of the loss; `last` of the step."""

    @abstractmethod
    def step(self, rate: float, *, finite: bool = True) -> bool:
        """Clip and update. False: a gradient was not finite, nothing was changed on any rank.

        `finite` says whether the loss was, on all ranks; the loss scale of float16 pays for overflows only.
        """

    @abstractmethod
    def grad_norm(self) -> float:
        """Global norm of the last step's gradients before clipping; inf when they were not finite."""

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """Writable views of what this rank owns of the float32 masters and the moments."""

    @abstractmethod
    def loaded(self, updates: int, loss_scaler: Mapping[str, float] | None = None) -> None:
        """Fragments were written; `updates` had been applied to them. Brings everything else in line, and
        takes over a `loss_scaler` where the engine has one."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory and hooks; the engine is not used again."""

    def loss_scaler(self) -> dict[str, float] | None:
        """State of the dynamic loss scale, the same on all ranks, `cur_scale` among it; None without one."""
        return None

    def training(self, on: bool) -> None:
        self.module.train(on)

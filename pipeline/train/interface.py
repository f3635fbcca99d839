"""What computes a step, as the loop sees it; plain.py and zero.py are the two that do.

One step: `forward` and `backward` for each micro-batch, then `step`. The losses given to `backward`
are this rank's shares of the whole batch's loss (already divided by the weights of the whole batch
over all ranks), so they add up to it and no engine averages anything again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.train.fragments import Fragment


@dataclass(frozen=True)
class BatchShape:
    """batch = world × micro_batch × accumulation, never rounded."""

    batch: int  # samples in a step, over all ranks
    micro_batch: int  # samples a rank holds at once
    accumulation: int  # micro-batches in a step


class Engine(ABC):
    """A model with its optimizer. Every method but `fragments` and `updates` is called by all ranks."""

    module: nn.Module  # names are canonical, parameters may be empty (ZeRO-3)
    optimizer: torch.optim.Optimizer  # its groups carry the rates
    updates: int  # updates applied so far, over all attempts

    @abstractmethod
    def forward(self, images: torch.Tensor, *more: object) -> torch.Tensor:
        """What the module makes of normalised images (n, 3, H, W): logits (n, K), or what its objective
        says; in training mode unless `training(False)` was called."""

    @abstractmethod
    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch's share of the loss; `last` of the step."""

    @abstractmethod
    def step(self, rate: float) -> bool:
        """Clip and update. False: a gradient was not finite, nothing was changed on any rank."""

    @abstractmethod
    def grad_norm(self) -> float:
        """Global norm of the last step's gradients before clipping; inf when they were not finite."""

    @abstractmethod
    def fragments(self) -> list[Fragment]:
        """Writable views of what this rank owns of the float32 masters and the moments."""

    @abstractmethod
    def loaded(self, updates: int) -> None:
        """Fragments were written; `updates` had been applied to them. Brings everything else in line."""

    @abstractmethod
    def close(self) -> None:
        """Give back memory and hooks; the engine is not used again."""

    def training(self, on: bool) -> None:
        self.module.train(on)

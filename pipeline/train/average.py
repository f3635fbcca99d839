"""Polyak average of the weights: one more slice of each parameter on the rank that owns its master.

    average ← d · average + (1 − d) · master,   d = min(decay, (1 + updates) ÷ (10 + updates))

after each applied update. It is element by element, so it is right at every ZeRO stage without any
communication, and it is saved, re-sharded and exported like the masters. The smaller d at the start
keeps the initial weights from outliving a short training (`ExponentialMovingAverage` of TensorFlow).
The paper averages with 0.9999 (Table 2).
"""

from __future__ import annotations

import torch

from pipeline.train.fragments import MASTER, Fragment

AVERAGE = "average"


class PolyakAverage:
    """The averages of what this rank owns. `fragments` are those of the engine."""

    def __init__(self, fragments: list[Fragment], decay: float) -> None:
        masters = [f for f in fragments if f.kind == MASTER]
        self.decay = decay
        self.fragments = [Fragment(f.name, AVERAGE, f.start, f.data.clone()) for f in masters]
        self._masters = [f.data for f in masters]
        self._averages = [f.data for f in self.fragments]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """After an update; `updates` have been applied, this one among them."""
        torch._foreach_lerp_(self._averages, self._masters, 1 - decay_at(self.decay, updates))

    @torch.no_grad()
    def become_masters(self) -> None:
        """Write the averages over the masters; the engine must be told (`loaded`). Ends the training."""
        torch._foreach_copy_(self._masters, self._averages)


def decay_at(decay: float, updates: int) -> float:
    return min(decay, (1 + updates) / (10 + updates))

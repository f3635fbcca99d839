"""How large an update is beside what it changes: ‖θ after − θ before‖ ÷ ‖θ before‖ over all parameters.

θ are the float32 masters that the optimizer changes, weight decay included. Each rank looks at what it owns,
at most 4 million numbers of it, evenly spaced in every parameter: exact for small models, within a percent
for large ones, and 16 MiB for the copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.train.fragments import MASTER, Fragment
from pipeline.train.world import World

MOST = 2**22  # numbers of a rank


@dataclass(frozen=True)
class Before:
    """Copies of every `stride`-th number of this rank's masters."""

    values: tuple[torch.Tensor, ...]
    stride: int


def before_update(fragments: Sequence[Fragment], most: int = MOST) -> Before:
    masters = _masters(fragments)
    stride = max(1, math.ceil(sum(len(data) for data in masters) / most))
    return Before(tuple(data[::stride].clone() for data in masters), stride)


def update_ratio(before: Before, fragments: Sequence[Fragment], world: World) -> float:
    """The ratio, the same on all ranks, which call it together; NaN where all parameters are zero."""
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    for data, old in zip(_masters(fragments), before.values, strict=True):
        new = data[:: before.stride]
        scale = len(data) / max(1, len(new))
        pair = torch.stack([(new - old).square().sum(), old.square().sum()])
        sums += scale * pair.to(sums.device, torch.float64)
    changed, whole = world.sums(sums.tolist())
    return math.sqrt(changed / whole) if whole > 0 else math.nan


def _masters(fragments: Sequence[Fragment]) -> list[torch.Tensor]:
    return [fragment.data for fragment in fragments if fragment.kind == MASTER]

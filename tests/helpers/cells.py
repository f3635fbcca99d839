"""Cells made by hand, for tests of comparisons and of what shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.transfer.cells import Cell, Cost


def make_cell(correct: Sequence[int] | NDArray[Any], **changes: Any) -> Cell:
    """A cell of the start scratch on digits with these right and wrong answers."""
    right = np.asarray(correct, dtype=bool)
    n = len(right)
    settings: dict[str, Any] = {
        "digest": "d",
        "dataset": "digits",
        "label": "scratch",
        "start": "scratch",
        "seed": 0,
        "protocol": "quick",
        "protocol_settings": {"tuned": {"protocol": {"duration": "100 steps"}}},
        "n": n,
        "top1": float(right.mean()),
        "ids": np.arange(n),
        "correct": right,
        "labels": np.zeros(n, np.int32),
        "predictions": np.where(right, 0, 1).astype(np.int32),
        "classes": ("a", "b"),
        "test_fingerprint": "f" * 64,
        "learning_rate": 0.03,
        "cost": {"finetune": Cost(images=100, exaflops=1e-6, seconds=3)},
    }
    return Cell(**{**settings, **changes})


def two_sides(gained: int, lost: int, both: int, neither: int, **changes: Any) -> list[Cell]:
    """A pretrained and a scratch cell with these counts of images that one or both get right."""
    pretrained = np.repeat([1, 0, 1, 0], [gained, lost, both, neither])
    scratch = np.repeat([0, 1, 1, 0], [gained, lost, both, neither])
    return [
        make_cell(pretrained, label="pretrained", start="pretrained", **changes),
        make_cell(scratch, **changes),
    ]

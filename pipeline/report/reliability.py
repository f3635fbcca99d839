"""Whether a model's confidence is its accuracy: predictions in bins of confidence, and the calibration error.

predictions.parquet of each seed ──► 15 bins of equal width ──► mean confidence and accuracy of each bin

A few-shot ridge gives no probabilities, so it has no place here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.rundir import RunDir
from pipeline.transfer.binning import bin_sums, calibration_error
from pipeline.transfer.cells import Cell


@dataclass(frozen=True)
class Reliability:
    """One label on one dataset, all seeds together; `bins`: (mean confidence, accuracy, predictions) each."""

    bins: tuple[tuple[float, float, int], ...]
    ece: float
    confidence: float
    accuracy: float

    @property
    def n(self) -> int:
        return sum(number for _, _, number in self.bins)


Key = tuple[str, str]  # dataset, label


def read_reliability(run: RunDir, cells: Sequence[Cell]) -> dict[Key, Reliability]:
    """Of every dataset and label whose predictions all have a confidence."""
    columns: dict[Key, list[tuple[NDArray[Any], NDArray[Any]]]] = {}
    missing = set()
    for cell in cells:
        path, key = run.job(cell.digest).predictions, (cell.dataset, cell.label)
        if "confidence" not in pq.read_schema(path).names:
            missing.add(key)
            continue
        table = pq.read_table(path, columns=["confidence", "correct"])
        found = table["confidence"].to_numpy().astype(np.float64), table["correct"].to_numpy()
        if not np.isfinite(found[0]).all():
            missing.add(key)
        columns.setdefault(key, []).append(found)
    return {
        key: _reliability(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for key, parts in columns.items()
        if key not in missing
    }


def _reliability(confidence: NDArray[Any], correct: NDArray[Any]) -> Reliability:
    numbers, sums, right = bin_sums(confidence, correct)
    return Reliability(
        bins=tuple(
            (float(sums[k] / numbers[k]), float(right[k] / numbers[k]), int(numbers[k]))
            for k in np.flatnonzero(numbers)
        ),
        ece=calibration_error(confidence, correct),
        confidence=float(confidence.mean()),
        accuracy=float(correct.mean()),
    )

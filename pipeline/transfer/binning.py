"""Predictions in bins of confidence: what the calibration error and the reliability diagram are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15  # of equal width, as Guo et al. (2017)


def bin_sums(
    confidences: NDArray[Any], correct: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each bin, (BINS,): predictions, the sum of their confidences, how many of them are right."""
    bins = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    return (
        np.bincount(bins, minlength=BINS),
        np.bincount(bins, confidences.astype(np.float64), BINS),
        np.bincount(bins, correct.astype(np.float64), BINS),
    )


def calibration_error(confidences: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error: mean over samples of |confidence - accuracy| of their bin."""
    _, sums, right = bin_sums(confidences, correct)
    return float(np.abs(sums - right).sum() / len(confidences))

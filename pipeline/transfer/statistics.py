"""Intervals and tests for accuracies: how sure a number is, and whether two numbers differ.

An accuracy is a mean over images of 0/1 `correct`; with several seeds it is the mean over seeds,
image by image. All shares are between 0 and 1 here; percentage points are made by who prints them.

    one accuracy          wilson           of n images; seeds do not multiply n
    seeds                 t_interval       of the mean over seeds
    two, same images      paired_interval  BCa bootstrap of the mean difference, resampled by image
                          mcnemar          exact test, one seed each
                          sign_flip        permutation test, several seeds
                          equivalent       two one-sided tests against a margin
    mean over datasets    stratified_interval  normal, images drawn within each dataset
    several tests         holm             adjusted p-values

Sources: Wilson (1927); Efron (1987), BCa; McNemar (1947) with the exact binomial form; Holm (1979);
Schuirmann (1987), two one-sided tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

RESAMPLES = 10_000
# Flips cost little when equal differences are drawn together, and the smallest p is 1 / (FLIPS + 1).
FLIPS = 100_000
# Up to here all sign patterns are listed instead of drawn.
MOST_LISTED = 14


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        return self.low <= other.high and other.low <= self.high

    def scaled(self, factor: float) -> Interval:
        return Interval(self.low * factor, self.high * factor)


def wilson(accuracy: float, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share `accuracy` of `n` images.

    `accuracy` may be a mean over seeds. The interval then is that of one model on n images: seeds
    see the same images, so they do not add to n.
    """
    if n < 1 or not 0 <= accuracy <= 1:
        raise ValueError(f"a share between 0 and 1 of at least one image is needed, not {accuracy} of {n}")
    z = stats.norm.ppf((1 + confidence) / 2)
    centre = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and 1 the bound is exact; rounding would leave 1e-17.
    low = 0.0 if accuracy == 0 else max(0.0, centre - half)
    high = 1.0 if accuracy == 1 else min(1.0, centre + half)
    return Interval(float(low), float(high))


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Interval of the mean of `values` (one a seed) by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * error
    return Interval(mean - half, mean + half)


def paired_interval(
    differences: Floats, *, confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """BCa bootstrap interval of the mean of `differences`.

    Args:
        differences: float (n,), challenger minus baseline for each image, each in [-1, 1].
        seed: of the resampling; the same input and seed give the same interval.

    When all differences are equal a bootstrap would return a point. Then the exact bound is used:
    a kind of image that was not seen among n has at most the share 1 - (alpha / 2) ** (1 / n).
    """
    values, counts = np.unique(differences, return_counts=True)
    n = int(counts.sum())
    tail = (1 - confidence) / 2
    if len(values) == 1:
        unseen = 1 - tail ** (1 / n)
        value = float(values[0])
        return Interval(value - (value + 1) * unseen, value + (1 - value) * unseen)
    means = _bootstrap_means(values, counts, resamples, seed)
    low, high = np.quantile(means, _bca_levels(values, counts, means, tail))
    return Interval(float(low), float(high))


def stratified_interval(
    differences: Sequence[Floats], weights: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Normal interval of the weighted sum of the means of `differences`, each of its own images.

    Args:
        differences: for each dataset, float (n,); images are drawn anew within each, never across.
        weights: of the datasets' means.
    """
    centre = sum(w * float(np.mean(d)) for d, w in zip(differences, weights, strict=True))
    # One image has no spread that could be seen: then nothing is known, which no finite number says.
    variances = [float(np.var(d, ddof=1)) / len(d) if len(d) > 1 else math.inf for d in differences]
    error = math.sqrt(sum(w * w * v for v, w in zip(variances, weights, strict=True)))
    half = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return Interval(centre - half, centre + half)


def _bootstrap_means(values: Floats, counts: NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """Means of `resamples` samples of n images drawn with replacement.

    Images with equal differences are interchangeable, so how often each value is drawn is
    multinomial: the same distribution as drawing images, at the cost of the distinct values.
    """
    n = int(counts.sum())
    generator = np.random.Generator(np.random.Philox(seed))
    rows = max(1, 2_000_000 // len(values))
    means = [
        generator.multinomial(n, counts / n, size=min(rows, resamples - start)) @ values / n
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(means)


def _bca_levels(values: Floats, counts: NDArray[np.int64], means: Floats, tail: float) -> list[float]:
    """The two quantiles of `means` that BCa asks for (Efron 1987, eq. 6.8 with the jackknife)."""
    n = int(counts.sum())
    mean = float(values @ counts) / n
    # Means lie on a lattice, so ties with the estimate are many: half of them count as below.
    tolerance = 1e-12
    below = float(np.mean(means < mean - tolerance)) + float(np.mean(np.abs(means - mean) <= tolerance)) / 2
    resolution = 0.5 / len(means)
    bias = float(stats.norm.ppf(min(max(below, resolution), 1 - resolution)))
    centred = values - mean
    spread = float(centred**2 @ counts)
    acceleration = float(centred**3 @ counts) / (6 * spread**1.5)
    levels = []
    for z in (float(stats.norm.ppf(tail)), float(stats.norm.ppf(1 - tail))):
        shifted = bias + z
        levels.append(float(stats.norm.cdf(bias + shifted / (1 - acceleration * shifted))))
    return levels


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test.

    Args:
        gained: images that only the challenger gets right.
        lost: images that only the baseline gets right.
    """
    if gained + lost == 0:
        return 1.0
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue)


def sign_flip(differences: Floats, *, seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of the paired sign-flip permutation test of a mean of zero.

    Args:
        differences: float (n,): of images (each the mean over seeds), or of seeds.

    Exact when few differences are not zero; else `flips` patterns are drawn and the observed one is
    counted among them, so p is never 0. With k paired seeds p cannot be below 2 / 2 ** k.
    """
    sizes, counts = np.unique(np.round(np.abs(differences[differences != 0]), 12), return_counts=True)
    if len(sizes) == 0:
        return 1.0
    # Sums of the same numbers in another order differ in the last bits: a tie is a tie.
    observed = abs(float(differences.sum())) - 1e-9
    if counts.sum() <= MOST_LISTED:
        each = np.repeat(sizes, counts)
        patterns = np.arange(2 ** len(each))[:, None] >> np.arange(len(each)) & 1
        sums = (1 - 2 * patterns) @ each
        return float(np.mean(np.abs(sums) >= observed))
    generator = np.random.Generator(np.random.Philox(seed))
    positive = generator.binomial(counts, 0.5, size=(flips, len(counts)))
    sums = (2 * positive - counts) @ sizes
    return float((1 + np.count_nonzero(np.abs(sums) >= observed)) / (flips + 1))


def equivalent(differences: Floats, margin: float, *, alpha: float = 0.05, seed: int = 0) -> bool:
    """Whether the mean of `differences` is shown to lie within ±`margin`.

    Two one-sided tests at `alpha`: the same as the 1 - 2·alpha interval lying inside the margin.
    """
    interval = paired_interval(differences, confidence=1 - 2 * alpha, seed=seed)
    return -margin < interval.low and interval.high < margin


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted

"""Means over datasets: of each group of a protocol (VTAB's three), of these means, and of all tasks.

Only datasets that every label has enter, so that all means of a group are of the same tasks. A group of
which tasks are missing says so in its name: its mean is not that of the whole group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.transfer.statistics import Interval, stratified_interval

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One label's mean over some datasets; top-1 is a share, differences are percentage points.

    Args:
        delta_pp, interval_pp: minus the baseline's mean; None for the baseline itself, and where the
            images differ. The interval (95 %) covers the choice of images within each dataset.
    """

    name: str
    label: str
    datasets: tuple[str, ...]
    top1: float
    delta_pp: float | None
    interval_pp: Interval | None


def means_of(
    groups: Mapping[str, Sequence[str]],
    top1: Mapping[tuple[str, str], float],
    differences: Mapping[tuple[str, str], Floats],
    labels: Sequence[str],
) -> list[Mean]:
    """All means, group by group; [] without groups, or where no dataset is shared by all labels.

    Args:
        groups: group → its datasets, as the protocol names them.
        top1: (dataset, label) → mean over seeds.
        differences: (dataset, label) → challenger minus baseline of each image, where they may be compared.
    """
    present = {
        group: [name for name in names if all((name, label) in top1 for label in labels)]
        for group, names in groups.items()
    }
    kept = {group: names for group, names in present.items() if names}
    found = []
    for title, weights in _averages(groups, kept):
        for label in labels:
            found.append(_mean(title, label, weights, top1, differences))
    return found


def _averages(
    groups: Mapping[str, Sequence[str]], kept: Mapping[str, Sequence[str]]
) -> list[tuple[str, dict[str, float]]]:
    """(title, dataset → weight) of each mean that is shown."""
    found = [
        (_titled(group, len(names), len(groups[group])), {name: 1 / len(names) for name in names})
        for group, names in kept.items()
    ]
    tasks, there = sum(map(len, groups.values())), sum(map(len, kept.values()))
    if len(kept) > 1:
        by_group = {name: 1 / len(names) / len(kept) for names in kept.values() for name in names}
        found.append((_titled("mean of groups", there, tasks), by_group))
        by_task = {name: 1 / there for names in kept.values() for name in names}
        found.append((_titled("mean of tasks", there, tasks), by_task))
    return found


def _titled(name: str, there: int, whole: int) -> str:
    return f"{name} ({there})" if there == whole else f"{name} ({there} of {whole})"


def _mean(
    title: str,
    label: str,
    weights: Mapping[str, float],
    top1: Mapping[tuple[str, str], float],
    differences: Mapping[tuple[str, str], Floats],
) -> Mean:
    by_image = [differences[name, label] for name in weights if (name, label) in differences]
    paired = len(by_image) == len(weights)
    interval = stratified_interval(by_image, list(weights.values())) if paired else None
    return Mean(
        name=title,
        label=label,
        datasets=tuple(weights),
        top1=sum(weight * top1[name, label] for name, weight in weights.items()),
        delta_pp=50 * (interval.low + interval.high) if interval else None,
        interval_pp=interval.scaled(100) if interval else None,
    )

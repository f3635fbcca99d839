"""The numbers under the pictures of insight.py, as tables for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.report.insight import Insight
from pipeline.report.sheet import Line, Sheet
from pipeline.report.words import clean, percent


def rollout_sheet(insight: Insight) -> Sheet:
    """How few patches hold half of the attention, for each image shown."""
    lines = []
    for row in insight.numbers["rollout"]["images"]:
        patches = np.size(row["shares"])
        lines.append(Line([clean(row["image"]), str(row["half_on"]), str(patches)]))
    return Sheet(("image", "half of the attention on", "of patches"), lines)


def distance_sheet(insight: Insight) -> Sheet:
    """Shortest, mean and longest distance over the heads of each layer."""
    lines = [
        Line([str(layer), *(f"{value:.1f}" for value in (min(heads), float(np.mean(heads)), max(heads)))])
        for layer, heads in enumerate(insight.numbers["distance"]["pixels"], 1)
    ]
    lines.append(Line(["even", "", f"{insight.numbers['distance']['even']:.1f}", ""], rule=True))
    return Sheet(("layer", "shortest head, px", "mean, px", "longest head, px"), lines)


def filters_sheet(insight: Insight) -> Sheet:
    """Share of the filters' variance in the first so many components."""
    shares = insight.numbers["filters"]["shares"]
    counts = [count for count in (1, 2, 4, 8, 16, len(shares)) if count <= len(shares)]
    lines = [Line([str(count), percent(sum(shares[:count]))]) for count in dict.fromkeys(counts)]
    return Sheet(("first components", "share of variance"), lines)


def positions_sheet(insight: Insight) -> Sheet:
    """Mean similarity of pairs of patches by how they lie to each other."""
    similarity = np.array(insight.numbers["positions"]["similarity"])
    rows, columns = similarity.shape[:2]
    down = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)))[:, None, :, None]
    across = np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))[None, :, None, :]
    kinds: Sequence[tuple[str, Any]] = (
        ("next to each other in a row", (down == 0) & (across == 1)),
        ("next to each other in a column", (down == 1) & (across == 0)),
        ("same row, farther", (down == 0) & (across > 1)),
        ("same column, farther", (down > 1) & (across == 0)),
        ("neither row nor column", (down > 0) & (across > 0)),
    )
    lines = []
    for name, chosen in kinds:
        values = similarity[np.broadcast_to(chosen, similarity.shape)]
        if values.size:
            lines.append(Line([name, f"{values.mean():.2f}"]))
    return Sheet(("two patches", "mean similarity"), lines)

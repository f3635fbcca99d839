"""Which models are worth their compute, and what more pre-training data bought.

    mean top-1 against training compute, with the Pareto front      the paper's Figure 5
    top-1 against the images of the pre-training, by model          the paper's Figure 3

A model is on the front when none has as little compute and is as good, one of both better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator

from pipeline.report.figures import (
    COLOURS,
    WIDE,
    Drawing,
    new_figure,
    new_panels,
    render,
    series_colour,
    series_marker,
    style,
)
from pipeline.report.plots import log_axis
from pipeline.report.sheet import Line, Sheet, grouped
from pipeline.report.words import bounds, clean, compute_of, count, exaflops, percent, quantity
from pipeline.transfer.comparison import Comparison, Row


@dataclass(frozen=True)
class Point:
    """One label: its mean over the datasets that all labels have, and the mean of all training behind it."""

    label: str
    compute: float
    top1: float
    on_front: bool


@dataclass(frozen=True)
class Frontier:
    """`unit`: exaFLOP, or images where operations were not counted."""

    points: tuple[Point, ...]
    datasets: tuple[str, ...]
    unit: str


def frontier(comparison: Comparison) -> Frontier | None:
    """None for fewer than two labels, no shared dataset, or trainings that counted nothing."""
    labels = comparison.labels
    datasets = tuple(d for d in comparison.datasets if all(comparison.row(d, label) for label in labels))
    rows = {label: [r for d in datasets if (r := comparison.row(d, label))] for label in labels}
    units = {compute_of(row.cost)[1] for own in rows.values() for row in own}
    unit = "exaFLOP" if units == {"exaFLOP"} else "images"
    if len(labels) < 2 or not datasets:
        return None
    compute = [
        _mean([r.cost.exaflops if unit == "exaFLOP" else r.cost.images for r in rows[n]]) for n in labels
    ]
    if min(compute) <= 0:
        return None
    top1 = [_mean([row.top1 for row in rows[label]]) for label in labels]
    on_front = pareto(compute, top1)
    points = tuple(Point(*values) for values in zip(labels, compute, top1, on_front, strict=True))
    return Frontier(points, datasets, unit)


def pareto(costs: Sequence[float], values: Sequence[float]) -> list[bool]:
    """For each point whether no other costs as little and is worth as much, one of both better."""
    points = list(zip(costs, values, strict=True))
    return [
        not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in points)
        for cost, value in points
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def frontier_plot(found: Frontier) -> Drawing:
    """Filled: on the front; hollow: another model is as good for less."""
    with style():
        figure = new_figure(WIDE, 3.4)
        axes = figure.subplots()
        front = sorted((p for p in found.points if p.on_front), key=lambda point: point.compute)
        axes.plot(
            [point.compute for point in front],
            [100 * point.top1 for point in front],
            color=COLOURS["muted"],
            linewidth=1.2,
            linestyle="--",
            drawstyle="steps-post",
            zorder=1,
            label="Pareto front",
        )
        for index, point in enumerate(found.points):
            colour = series_colour(index)
            axes.plot(
                [point.compute],
                [100 * point.top1],
                marker=series_marker(index),
                color=colour,
                markerfacecolor=colour if point.on_front else COLOURS["page"],
                markersize=8,
                linestyle="",
            )
            axes.annotate(
                clean(point.label, 28),
                (point.compute, 100 * point.top1),
                xytext=(8, 9),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        log_axis(axes, [point.compute for point in found.points])
        axes.margins(y=0.18)
        is_flops = found.unit == "exaFLOP"
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda v, _: exaflops(v) if is_flops else quantity(v, ""))
        )
        axes.set_xlabel(
            ("training compute" if is_flops else "images seen in training") + ", mean over datasets (log)"
        )
        axes.set_ylabel("mean top-1, %")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8.5, borderaxespad=0.2)
        return render(
            figure, "frontier", "Mean top-1 accuracy against training compute, with the Pareto front"
        )


def frontier_sheet(found: Frontier) -> Sheet:
    is_flops = found.unit == "exaFLOP"
    lines = [
        Line(
            [
                clean(point.label),
                percent(point.top1),
                exaflops(point.compute) if is_flops else quantity(point.compute, "images"),
                "yes" if point.on_front else "no",
            ]
        )
        for point in sorted(found.points, key=lambda point: point.compute)
    ]
    return Sheet(("model", f"mean over {len(found.datasets)} datasets", "compute", "on the front"), lines)


def sized(comparison: Comparison) -> list[Row]:
    """Rows whose pre-training says how many images it had; none unless these numbers differ."""
    rows = [row for row in comparison.rows if row.pretraining is not None and row.pretraining.images]
    return rows if len({row.pretraining.images for row in rows if row.pretraining}) > 1 else []


def size_plot(rows: Sequence[Row]) -> Drawing:
    """A panel for each dataset, a line for each model."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    models = list(dict.fromkeys(row.pretraining.model for row in rows if row.pretraining))
    with style():
        figure, grid = new_panels(len(datasets), WIDE, 0.5, 2.5)
        for axes, dataset in zip(grid, datasets, strict=False):
            _size_panel(axes, [row for row in rows if row.dataset == dataset], models)
            axes.set_title(clean(dataset, 28))
        grid[0].set_ylabel("top-1, %")
        grid[0].set_xlabel("images of the pre-training (log)")
        for index, model in enumerate(models):
            grid[0].plot(
                [], [], color=series_colour(index), marker=series_marker(index), label=clean(model, 40)
            )
        figure.legend(loc="outside upper left", ncols=min(4, len(models)), fontsize=8.5)
        return render(figure, "size", "Top-1 accuracy against the number of pre-training images")


def _size_panel(axes: Any, rows: Sequence[Row], models: Sequence[str]) -> None:
    images = [float(row.pretraining.images) for row in rows if row.pretraining and row.pretraining.images]
    for index, model in enumerate(models):
        own = [row for row in rows if row.pretraining and row.pretraining.model == model]
        own.sort(key=lambda row: row.pretraining.images or 0 if row.pretraining else 0)
        x = [row.pretraining.images for row in own if row.pretraining]
        y = np.array([100 * row.top1 for row in own])
        low = y - [100 * row.interval.low for row in own]
        high = [100 * row.interval.high for row in own] - y
        axes.errorbar(
            x,
            y,
            np.maximum(0, [low, high]),
            fmt=f"{series_marker(index)}-",
            color=series_colour(index),
            markersize=5,
            linewidth=1.3,
            elinewidth=1.1,
        )
    log_axis(axes, images)
    if max(images) > 20 * min(images):
        # A narrow panel has no room for 2 and 5 between the decades.
        axes.xaxis.set_major_locator(LogLocator(subs=(1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value, "")))


def size_sheet(rows: Sequence[Row]) -> Sheet:
    lines = [
        (
            clean(row.dataset),
            clean(row.label),
            clean(row.pretraining.model),
            ", ".join(clean(name, 20) for name in row.pretraining.data),
            count(row.pretraining.images or 0),
            percent(row.top1),
            bounds(row.interval.scaled(100)),
        )
        for row in rows
        if row.pretraining
    ]
    heads = ("dataset", "model", "network", "pre-trained on", "images", "top-1", "95 % CI")
    return grouped(heads, lines, (0, 1, 2, 3))

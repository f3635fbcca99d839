"""The plots of the report, each a function of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from pipeline.report.curves import Curve
from pipeline.report.figures import (
    COLOURS,
    HALF,
    WIDE,
    Drawing,
    new_figure,
    new_panels,
    render,
    series_colour,
    series_marker,
    style,
)
from pipeline.report.words import bounds, clean, compute_of, exaflops, quantity, signed
from pipeline.transfer.results import Comparison, Row

_DECIDED = ("better", "worse")


def forest(comparison: Comparison) -> Drawing:
    """Difference to the baseline with its interval, a line for each pair."""
    pairs = comparison.pairs
    challengers = list(dict.fromkeys(pair.challenger for pair in pairs))
    with style():
        figure = new_figure(HALF, _height(comparison))
        axes = figure.subplots()
        axes.axvline(0, color=COLOURS["muted"], linewidth=1)
        for place, pair in enumerate(pairs):
            index = challengers.index(pair.challenger)
            colour = series_colour(index)
            if pair.interval_pp is not None:
                axes.plot(
                    [pair.interval_pp.low, pair.interval_pp.high], [place, place], color=colour, linewidth=2
                )
            axes.plot(
                [pair.delta_pp],
                [place],
                marker=series_marker(index),
                color=colour,
                # Hollow: no difference was shown.
                markerfacecolor=colour if pair.verdict in _DECIDED else COLOURS["page"],
                markersize=6,
            )
            axes.annotate(
                f"{signed(pair.delta_pp)}  [{bounds(pair.interval_pp)}]",
                (1.0, place),
                xycoords=("axes fraction", "data"),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        names = [
            clean(p.dataset, 22) + (f" · {clean(p.challenger, 16)}" if len(challengers) > 1 else "")
            for p in pairs
        ]
        _rows(axes, names)
        axes.set_xlabel(f"difference to {clean(comparison.baseline)}, percentage points, 95 % interval")
        return render(figure, "forest", "Difference to the baseline on each dataset with 95 % intervals")


def accuracy(comparison: Comparison) -> Drawing:
    """Top-1 with its Wilson interval, and each seed as a tick."""
    labels, datasets = comparison.labels, comparison.datasets
    with style():
        figure = new_figure(HALF, _height(comparison))
        axes = figure.subplots()
        for index, label in enumerate(labels):
            offset = (index - (len(labels) - 1) / 2) * min(0.28, 0.7 / len(labels))
            for place, dataset in enumerate(datasets):
                row = comparison.row(dataset, label)
                if row is None:
                    continue
                y, colour = place + offset, series_colour(index)
                axes.plot(
                    [100 * row.interval.low, 100 * row.interval.high], [y, y], color=colour, linewidth=2
                )
                axes.plot(
                    [100 * row.top1],
                    [y],
                    marker=series_marker(index),
                    color=colour,
                    markersize=6,
                    linestyle="",
                )
                if len(row.seeds) > 1:
                    values = [100 * value for value in row.top1_by_seed]
                    axes.plot(
                        values,
                        [y] * len(values),
                        marker="|",
                        color=COLOURS["ink"],
                        markersize=8,
                        linestyle="",
                    )
        _rows(axes, [clean(dataset, 22) for dataset in datasets])
        _keys(axes, labels)
        axes.set_xlabel("top-1 on the locked test split, %; bar: 95 % over images; ticks: seeds")
        return render(figure, "accuracy", "Top-1 accuracy on each dataset with 95 % intervals")


def compute(comparison: Comparison) -> Drawing:
    """Top-1 against all training compute behind it, pre-training included."""
    labels = comparison.labels
    amounts = {(row.dataset, row.label): compute_of(row.cost) for row in comparison.rows}
    is_flops = all(unit == "exaFLOP" for _, unit in amounts.values())
    with style():
        height = max(3.3, 1.3 + 0.19 * len(comparison.datasets))
        figure = new_figure(WIDE, height)
        axes = figure.subplots()
        ends = []
        for dataset in comparison.datasets:
            rows = [r for label in labels if (r := comparison.row(dataset, label)) is not None]
            x = [_amount(row, is_flops) for row in rows]
            order = np.argsort(x)
            axes.plot(
                [x[i] for i in order],
                [100 * rows[i].top1 for i in order],
                color=COLOURS["line"],
                linewidth=1.2,
                zorder=1,
            )
            for row, amount in zip(rows, x, strict=True):
                index = labels.index(row.label)
                top1 = 100 * row.top1
                bars = [[top1 - 100 * row.interval.low], [100 * row.interval.high - top1]]
                axes.errorbar(
                    [amount],
                    [top1],
                    bars,
                    fmt=series_marker(index),
                    color=series_colour(index),
                    markersize=6,
                    elinewidth=1.2,
                )
            ends.append((x[order[-1]], 100 * rows[order[-1]].top1, clean(dataset, 22)))
        if all(amount > 0 for amount, _ in amounts.values()):
            log_axis(axes, [end for row in comparison.rows for end in [_amount(row, is_flops)]])
        axes.margins(y=0.12)
        _name_ends(axes, ends, height)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: exaflops(value) if is_flops else quantity(value, ""))
        )
        axes.set_ylabel("top-1, %")
        axes.set_xlabel(
            ("training compute" if is_flops else "images seen in training")
            + ", pre-training and choices included (log)"
        )
        _keys(axes, labels)
        return render(figure, "compute", "Top-1 accuracy against training compute")


def pretraining(curve: Curve) -> Drawing:
    """Loss of pre-training by step, the restarts marked."""
    with style():
        figure = new_figure(WIDE, 2.7)
        axes = figure.subplots()
        axes.plot(curve.steps, curve.losses, color=series_colour(0))
        for start in curve.starts[1:]:
            axes.axvline(start.get("step", 0), color=COLOURS["muted"], linewidth=0.8, linestyle=":")
        axes.set_xlabel("step" + ("; dotted: resumed here" if len(curve.starts) > 1 else ""))
        axes.set_ylabel("training loss")
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.margins(x=0.01)
        return render(figure, "pretraining", "Pre-training loss by step")


def finetuning(curves: Mapping[str, Mapping[str, Sequence[Curve]]], labels: Sequence[str]) -> Drawing:
    """Loss of fine-tuning by step, a panel for each dataset; band: range over seeds.

    Args:
        curves: dataset → start → one curve a seed.
    """
    with style():
        figure, grid = new_panels(len(curves), WIDE, 0.5, 2.2)
        for axes, (dataset, by_start) in zip(grid, curves.items(), strict=False):
            for start, seeds in by_start.items():
                index = labels.index(start)
                shared = sorted(set.intersection(*(set(curve.steps) for curve in seeds)))
                if not shared:
                    continue
                losses = np.array([_at(curve, shared) for curve in seeds])
                colour = series_colour(index)
                if len(seeds) > 1:
                    axes.fill_between(
                        shared, losses.min(0), losses.max(0), color=colour, alpha=0.18, linewidth=0
                    )
                # A few points make no line that can be seen.
                marker = series_marker(index) if len(shared) < 4 else ""
                dashes = "-" if index == 0 else "--"
                axes.plot(shared, losses.mean(0), color=colour, linestyle=dashes, marker=marker, markersize=4)
            axes.set_title(clean(dataset, 28))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.margins(x=0.01)
            axes.set_ylim(bottom=0)
        grid[0].set_ylabel("training loss")
        grid[0].set_xlabel("step")
        for index, label in enumerate(labels):
            grid[0].plot(
                [],
                [],
                color=series_colour(index),
                linestyle="-" if index == 0 else "--",
                label=clean(label, 20),
            )
        figure.legend(loc="outside upper left", ncols=len(labels), fontsize=8.5)
        return render(figure, "finetuning", "Fine-tuning loss by step for each dataset")


def _amount(row: Row, is_flops: bool) -> float:
    return row.cost.exaflops if is_flops else row.cost.images


def _name_ends(axes: Any, ends: Sequence[tuple[float, float, str]], height: float) -> None:
    """Names beside the last points, moved apart where they would lie on each other."""
    low, high = axes.get_ylim()
    gap = 0.15 * (high - low) / (height - 1)  # the height of a line of text, in units of the axis
    place = -np.inf
    for x, y, name in sorted(ends, key=lambda end: end[1]):
        place = max(y, place + gap)
        axes.annotate(
            name,
            (x, y),
            xytext=(12, (place - y) / (high - low) * (height - 1) * 72),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def log_axis(axes: Any, values: Sequence[float]) -> None:
    """A log axis around `values` with a label at 1, 2 and 5 of each decade: it may span less than one."""
    axes.set_xscale("log")
    middle, half = np.sqrt(min(values) * max(values)), max(2.2, 1.35 * np.sqrt(max(values) / min(values)))
    axes.set_xlim(middle / half, middle * half)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if half < 50 else (1,)))
    axes.xaxis.set_minor_locator(NullLocator())


def _at(curve: Curve, steps: Sequence[int]) -> list[float]:
    losses = dict(zip(curve.steps, curve.losses, strict=True))
    return [losses[step] for step in steps]


def _height(comparison: Comparison) -> float:
    """Inches; the same for the two plots that stand side by side."""
    return 1.0 + 0.2 * (len(comparison.labels) + 1) * max(2, len(comparison.datasets))


def _rows(axes: Any, names: Sequence[str]) -> None:
    """Names down the side, the first on top."""
    axes.set_yticks(range(len(names)), names, color=COLOURS["ink"])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _keys(axes: Any, labels: Sequence[str]) -> None:
    """The key above the plot, shapes and colours."""
    for index, label in enumerate(labels):
        axes.plot(
            [],
            [],
            marker=series_marker(index),
            color=series_colour(index),
            linestyle="",
            label=clean(label, 24),
        )
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(4, len(labels)), fontsize=8.5, borderaxespad=0.2
    )

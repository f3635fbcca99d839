"""The reliability diagram of the report, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.ticker import PercentFormatter

from pipeline.report.figures import (
    COLOURS,
    WIDE,
    Drawing,
    new_panels,
    render,
    series_colour,
    series_marker,
    style,
)
from pipeline.report.reliability import Key, Reliability
from pipeline.report.sheet import Sheet, grouped
from pipeline.report.words import clean, count, percent


def reliability_diagram(found: Mapping[Key, Reliability], labels: Sequence[str]) -> Drawing:
    """A panel for each dataset; the dotted line is a model whose confidence is its accuracy."""
    datasets = list(dict.fromkeys(dataset for dataset, _ in found))
    with style():
        figure, grid = new_panels(len(datasets), WIDE, 0.4, 2.6, most=4, shared=True)
        for axes, dataset in zip(grid, datasets, strict=False):
            axes.plot([0, 1], [0, 1], color=COLOURS["muted"], linestyle=":", linewidth=1)
            for index, label in enumerate(labels):
                if (dataset, label) not in found:
                    continue
                bins = found[dataset, label].bins
                axes.plot(
                    [confidence for confidence, _, _ in bins],
                    [accuracy for _, accuracy, _ in bins],
                    color=series_colour(index),
                    marker=series_marker(index),
                    markersize=4,
                    label=clean(label, 20),
                )
            axes.set_title(clean(dataset, 28))
            axes.set_xlim(0, 1)
            axes.set_ylim(0, 1)
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        grid[0].set_xlabel("confidence")
        grid[0].set_ylabel("accuracy")
        grid[0].legend(fontsize=8, loc="upper left")
        return render(figure, "calibration", "Accuracy by confidence on each dataset")


def reliability_sheet(found: Mapping[Key, Reliability]) -> Sheet:
    rows = [
        (clean(dataset), clean(label), count(r.n), percent(r.accuracy), percent(r.confidence), percent(r.ece))
        for (dataset, label), r in found.items()
    ]
    heads = ("dataset", "model", "predictions", "top-1", "mean confidence", "calibration error")
    return grouped(heads, rows, (0, 1))

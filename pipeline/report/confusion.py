"""Which classes are taken for which: a map of each dataset's predictions, and the most frequent confusions.

predictions of all seeds of one label ──► (K, K) shares of each true class ──► map, table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from numpy.typing import NDArray

from pipeline.report.figures import COLOURS, WIDE, Drawing, new_panels, render, style
from pipeline.report.sheet import Line, Sheet, grouped
from pipeline.report.words import clean, count, percent
from pipeline.transfer.cells import Cell

_NAMED = 24  # classes whose names fit beside a map
MOST_CLASSES = 400  # a map of more is noise
MOST_CONFUSIONS = 8  # of a dataset, in the table
MOST_LISTED = 200  # classes of a dataset, the hardest


@dataclass(frozen=True, eq=False)
class Confusions:
    """Of one label on one dataset: `counts` (K, K) true × predicted, all seeds together."""

    dataset: str
    label: str
    classes: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """(K, K) of each true class; a class without images has none."""
        totals = self.counts.sum(axis=1, keepdims=True)
        shares: NDArray[np.float64] = self.counts / np.maximum(totals, 1)
        return shares


def confusions(cells: Sequence[Cell], label: str) -> list[Confusions]:
    """Of each dataset on which `label` was evaluated."""
    grouped_cells: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.label == label:
            grouped_cells.setdefault(cell.dataset, []).append(cell)
    return [_of(dataset, label, own) for dataset, own in grouped_cells.items()]


def _of(dataset: str, label: str, cells: Sequence[Cell]) -> Confusions:
    first = cells[0]
    size = max(len(first.classes), *(int(max(c.labels.max(), c.predictions.max())) + 1 for c in cells))
    counts = np.zeros((size, size), dtype=np.int64)
    for cell in cells:
        np.add.at(counts, (cell.labels, cell.predictions), 1)
    names = tuple(first.classes[k] if k < len(first.classes) else str(k) for k in range(size))
    return Confusions(dataset, label, names, counts)


def confusion_maps(found: Sequence[Confusions]) -> Drawing:
    """A panel for each dataset of at most MOST_CLASSES classes: rows are true, columns predicted."""
    shown = [one for one in found if len(one.classes) <= MOST_CLASSES]
    assert shown, "a caller asks for maps only where there is one to draw"
    between = Normalize(0, 1)
    # From nothing to ink: read on paper as well; the map of "none" is the page itself.
    colours = LinearSegmentedColormap.from_list("confusion", ["#ffffff", "#0072b2", "#06263c"])
    with style():
        figure, grid = new_panels(len(shown), WIDE, 0.3, 3.5)
        for axes, one in zip(grid, shown, strict=False):
            _map(axes, one, colours(between(one.shares), bytes=True))
        grid[0].set_xlabel("predicted")
        grid[0].set_ylabel("true")
        bar = figure.colorbar(
            ScalarMappable(between, colours), ax=list(grid), shrink=0.5, aspect=24, pad=0.02
        )
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)
        assert bar.solids is not None, "a bar of a colour map has its colours"
        bar.solids.set_rasterized(True)  # one picture, not 256 rectangles of fixed colours
        return render(figure, "confusion", "Which classes are predicted for which, on each dataset")


def _map(axes: Any, one: Confusions, pixels: NDArray[np.uint8]) -> None:
    axes.imshow(pixels, interpolation="none")
    axes.grid(False)
    axes.set_title(clean(one.dataset, 28))
    size = len(one.classes)
    if size <= _NAMED:
        names = [clean(name, 12) for name in one.classes]
        axes.set_yticks(range(size), names, fontsize=7)
        axes.set_xticks(range(size), names, fontsize=7, rotation=90)
    for spine in axes.spines.values():
        spine.set(visible=True, color=COLOURS["line"])


def confusion_sheet(found: Sequence[Confusions]) -> Sheet:
    """The most frequent confusions of each dataset, by images over all seeds."""
    rows = []
    for one in found:
        wrong = one.counts.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(-wrong.ravel(), kind="stable")[:MOST_CONFUSIONS]
        totals = one.counts.sum(axis=1)
        for place in order:
            true, taken = divmod(int(place), len(one.classes))
            number = int(wrong[true, taken])
            if number:
                names = (clean(one.classes[true], 32), clean(one.classes[taken], 32))
                rows.append((clean(one.dataset), *names, count(number), percent(number / totals[true])))
    heads = ("dataset", "true", "taken for", "predictions", "of the true class")
    return grouped(heads, rows, (0, 1, 2))


def class_sheets(found: Mapping[str, Sequence[Confusions]]) -> list[tuple[str, Sheet]]:
    """Every class of each dataset with its accuracy for each label; the hardest first.

    Args:
        found: label → its confusions.
    """
    datasets = list(dict.fromkeys(one.dataset for own in found.values() for one in own))
    return [(clean(dataset), _classes(dataset, found)) for dataset in datasets]


def _classes(dataset: str, found: Mapping[str, Sequence[Confusions]]) -> Sheet:
    own = {label: one for label, several in found.items() for one in several if one.dataset == dataset}
    first = next(iter(own.values()))
    right = {label: np.diagonal(one.shares) for label, one in own.items()}
    totals = first.counts.sum(axis=1)
    order = [int(k) for k in np.argsort(right[first.label], kind="stable") if totals[k]]
    lines = [
        Line([clean(first.classes[k], 32), count(int(totals[k])), *(percent(r[k]) for r in right.values())])
        for k in order[:MOST_LISTED]
    ]
    return Sheet(("class", f"predictions of {clean(first.label)}", *map(clean, right)), lines)

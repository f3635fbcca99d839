"""The tables of the page, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.report.gather import Facts
from pipeline.report.sheet import Line, Sheet, grouped
from pipeline.report.tables import HEADS, cells_of, pair_of
from pipeline.report.words import (
    clean,
    count,
    p_value,
    percent,
    signed,
)
from pipeline.transfer.cells import Cell
from pipeline.transfer.results import Comparison

# Classes shown each way in the table of changes.
MOST_CLASSES = 8


def results(comparison: Comparison) -> Sheet:
    lines = []
    before = ""
    for row in comparison.rows:
        cells = cells_of(comparison, row)
        pair = pair_of(comparison, row)
        new = row.dataset != before
        shown = [cells[0] if new else "", *cells[1:]]
        tone = pair.verdict.replace(" ", "-") if pair else ""
        lines.append(Line(shown, rule=new and before != "", tone=tone))
        before = row.dataset
    return Sheet(HEADS, lines, (0, 1, len(HEADS) - 1))


def pairs(comparison: Comparison) -> Sheet:
    """What each verdict rests on."""
    heads = (
        "dataset",
        "model",
        "only it right",
        "only baseline right",
        "test",
        "p",
        "p (Holm)",
        "p over seeds",
    )
    rows = [
        (
            clean(pair.dataset),
            clean(pair.challenger),
            count(pair.gained),
            count(pair.lost),
            "overlap" if pair.intervals_overlap else "apart",
            pair.test,
            p_value(pair.p),
            p_value(pair.p_holm),
            p_value(pair.seed_p),
        )
        for pair in comparison.pairs
    ]
    return grouped(heads, rows, (0, 1, 4, 5))


def seeds(comparison: Comparison) -> Sheet:
    """Each seed, and the interval of their mean."""
    rows = [
        (
            clean(row.dataset),
            clean(row.label),
            percent(row.top1),
            ", ".join(f"{100 * value:.1f}" for value in row.top1_by_seed),
            f"{100 * row.seed_interval.low:.1f} to {100 * row.seed_interval.high:.1f}"
            if row.seed_interval
            else "–",
        )
        for row in comparison.rows
    ]
    return grouped(("dataset", "model", "top-1", "by seed, %", "95 % over seeds (t), %"), rows, (0, 1))


def choices(facts: Facts) -> Sheet:
    """The grid of learning rates; the chosen one is marked."""
    chosen = {(row.dataset, row.label): row.learning_rates for row in facts.comparison.rows}
    rows = [
        (
            clean(dataset),
            clean(start),
            f"{choice.rate:g}",
            percent(choice.top1),
            f"{choice.loss:.3f}",
            "chosen" if choice.rate in chosen.get((dataset, start), ()) else "",
        )
        for (dataset, start), tried in facts.choices.items()
        for choice in tried
    ]
    return grouped(
        ("dataset", "start", "learning rate", "held-out top-1", "held-out loss", ""), rows, (0, 1, 5)
    )


def data(facts: Facts) -> Sheet:
    heads = (
        "dataset",
        "source",
        "classes",
        "train",
        "test",
        "unreadable",
        "test opened",
        "train fingerprint",
    )
    rows = [
        Line(
            [
                clean(card.name),
                clean(card.source),
                count(card.classes),
                count(card.samples.get("train", 0)),
                count(card.samples.get("test", 0)),
                count(card.unreadable),
                str(card.openings) if card.openings else "–",
                card.fingerprints.get("train", "–")[:16],
                card.fingerprints.get("test", "–")[:16],
            ]
        )
        for card in facts.data
    ]
    return Sheet((*heads, "test fingerprint"), rows, (0, 1))


def class_changes(facts: Facts, dataset: str, challenger: str) -> Sheet:
    """Classes whose accuracy changed most against the baseline, means over seeds."""
    baseline = facts.comparison.baseline
    sides = [
        [c for c in facts.cells if (c.dataset, c.label) == (dataset, name)] for name in (challenger, baseline)
    ]
    first = sides[0][0]
    by_class = [np.array([_by_class(cell) for cell in side]).mean(0) for side in sides]
    numbers = np.bincount(first.labels, minlength=by_class[0].size)
    difference = by_class[0] - by_class[1]
    order = [int(k) for k in np.argsort(-difference, kind="stable") if numbers[k]]
    shown = order if len(order) <= 2 * MOST_CLASSES else [*order[:MOST_CLASSES], *order[-MOST_CLASSES:]]
    lines = [
        Line(
            [
                clean(first.classes[k]) if k < len(first.classes) else str(k),
                count(numbers[k]),
                percent(by_class[0][k]),
                percent(by_class[1][k]),
                signed(100 * float(difference[k])),
            ],
            rule=place == MOST_CLASSES and shown is not order,
        )
        for place, k in enumerate(shown)
    ]
    return Sheet(("class", "n", clean(challenger), clean(baseline), "difference, pp"), lines)


def _by_class(cell: Cell) -> np.ndarray[Any, np.dtype[np.float64]]:
    size = max(len(cell.classes), int(cell.labels.max()) + 1)
    numbers = np.bincount(cell.labels, minlength=size)
    right = np.bincount(cell.labels, weights=cell.correct, minlength=size)
    share: np.ndarray[Any, np.dtype[np.float64]] = right / np.maximum(numbers, 1)
    return share

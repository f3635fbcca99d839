"""What a reader of a comparison must know besides its verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from pipeline.transfer.comparison import Pair, Row

# Fewer seeds are named in every verdict: the choice of seed alone moves results (arXiv 2109.08203).
ENOUGH_SEEDS = 3


def warnings_of(
    rows: Mapping[tuple[str, str], Row],
    pairs: Sequence[Pair],
    marks: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    datasets: Sequence[str],
    baseline: str,
) -> list[str]:
    """Sentences for the reader of the comparison."""
    lines = [mark for dataset in datasets for mark in marks[dataset]]
    few = sorted({len(row.seeds) for row in rows.values() if len(row.seeds) < ENOUGH_SEEDS})
    if few:
        lines.append(
            f"{few[0]} seed{'s' if few[0] > 1 else ''} in at least one cell: "
            "how much the choice of seed moves a number is hardly known"
        )
    lines += [_disagreement(pair) for pair in pairs if _seeds_disagree(pair)]
    cross = itertools.product(datasets, labels)
    missing = [f"{label} on {dataset}" for dataset, label in cross if (dataset, label) not in rows]
    if missing:
        lines.append(f"no result for {', '.join(missing)}")
    if baseline not in labels:
        lines.append(f"no result for the baseline {baseline}: nothing was compared")
    return lines


def _seeds_disagree(pair: Pair) -> bool:
    """Whether a verdict over images is contradicted by one of the seeds."""
    sign = {"better": 1, "worse": -1}.get(pair.verdict, 0)
    return bool(sign) and any(sign * delta <= 0 for delta in pair.seed_deltas_pp)


def _disagreement(pair: Pair) -> str:
    deltas = ", ".join(f"{delta:+.1f}" for delta in pair.seed_deltas_pp)
    return (
        f"{pair.challenger} is {pair.verdict} than {pair.baseline} on {pair.dataset} over images, "
        f"but its seeds do not agree: {deltas} pp"
    )

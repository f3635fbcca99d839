"""Which start is better on which dataset, by how much, and how sure that is.

`collect` reads the cells of a run (pipeline/transfer/cells.py); `compare` sets them side by side:

    cells ──► Row   one for each dataset and label: mean over seeds, n, intervals
          └─► Pair  one for each dataset and challenger: difference on the same images, p, verdict

Numbers of different protocols or test splits are refused by name; with `force` they are shown, marked
and never called better.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.transfer.cautions import warnings_of
from pipeline.transfer.cells import Cell, Cost, collect
from pipeline.transfer.comparable import check_group, marks_of
from pipeline.transfer.comparison import Comparison, Pair, Row, Verdict
from pipeline.transfer.means import Mean, means_of
from pipeline.transfer.statistics import (
    equivalent,
    holm,
    mcnemar,
    paired_interval,
    sign_flip,
    t_interval,
    wilson,
)

__all__ = ["Cell", "Comparison", "Cost", "Pair", "Row", "Verdict", "collect", "compare"]

ALPHA = 0.05


def compare(
    cells: Sequence[Cell],
    baseline: str = "scratch",
    *,
    force: bool = False,
    margin_pp: float | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
) -> Comparison:
    """Set `cells` side by side, each label against `baseline`.

    Args:
        baseline: a label of the cells; without it there are rows and no pairs.
        force: compare over different protocols or test splits, and mark it.
        margin_pp: differences inside ± this many points may be called equivalent.
        groups: group → datasets; their means are shown too.

    Raises:
        UserError: no cell at all, or cells that must not be compared.
    """
    if not cells:
        raise UserError(
            "no finished evaluation",
            "at least one evaluate job with its result",
            "finish the run first: vitline run",
        )
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: (cell.dataset, cell.label, cell.seed)):
        grouped.setdefault((cell.dataset, cell.label), []).append(cell)
    datasets = tuple(dict.fromkeys(cell.dataset for cell in cells))
    labels = tuple(dict.fromkeys([*(cell.label for cell in cells if cell.label != baseline), baseline]))
    labels = tuple(label for label in labels if any(cell.label == label for cell in cells))
    for group in grouped.values():
        check_group(group)
    marks = {dataset: marks_of([c for c in cells if c.dataset == dataset], force) for dataset in datasets}
    rows = {key: _row(group) for key, group in grouped.items()}
    pairs = [
        _pair(grouped[dataset, label], grouped[dataset, baseline], marks[dataset])
        for dataset in datasets
        for label in labels
        if label != baseline and (dataset, label) in grouped and (dataset, baseline) in grouped
    ]
    decided = tuple(_decide(pairs, grouped, margin_pp))
    return Comparison(
        baseline=baseline,
        labels=labels,
        datasets=datasets,
        rows=tuple(rows[key] for key in itertools.product(datasets, labels) if key in rows),
        pairs=decided,
        margin_pp=margin_pp,
        warnings=tuple(warnings_of(rows, decided, marks, labels, datasets, baseline)),
        means=tuple(_means(groups or {}, rows, decided, grouped, labels)),
    )


def _means(
    named: Mapping[str, Sequence[str]],
    rows: Mapping[tuple[str, str], Row],
    pairs: Sequence[Pair],
    cells: Mapping[tuple[str, str], Sequence[Cell]],
    labels: Sequence[str],
) -> list[Mean]:
    by_image = {
        (pair.dataset, pair.challenger): differences(
            cells[pair.dataset, pair.challenger], cells[pair.dataset, pair.baseline]
        )
        for pair in pairs
        if pair.p is not None and not pair.marks
    }
    return means_of(named, {key: row.top1 for key, row in rows.items()}, by_image, labels)


def _row(group: Sequence[Cell]) -> Row:
    first = group[0]
    values = tuple(cell.top1 for cell in group)
    top1 = float(np.mean(values))
    stages = dict.fromkeys(stage for cell in group for stage in cell.cost)
    by_stage = {stage: _mean([cell.cost.get(stage, Cost()) for cell in group]) for stage in stages}
    return Row(
        dataset=first.dataset,
        label=first.label,
        seeds=tuple(cell.seed for cell in group),
        n=first.n,
        top1=top1,
        top1_by_seed=values,
        interval=wilson(min(1.0, top1), first.n),
        seed_interval=t_interval(values),
        learning_rates=tuple(sorted({c.learning_rate for c in group if c.learning_rate is not None})),
        protocol=first.protocol,
        test_fingerprint=first.test_fingerprint,
        cost=_mean([cell.total_cost for cell in group]),
        cost_by_stage=by_stage,
        pretraining=first.pretraining,
    )


def _mean(costs: Sequence[Cost]) -> Cost:
    total = sum(costs, Cost())
    n = len(costs)
    return Cost(
        images=total.images / n,
        exaflops=total.exaflops / n,
        seconds=total.seconds / n,
        device_hours=total.device_hours / n,
    )


def differences(challenger: Sequence[Cell], baseline: Sequence[Cell]) -> NDArray[np.float64]:
    """Float (n,): for each image, share of the challenger's seeds that are right minus the baseline's."""
    means = [np.mean([cell.correct for cell in side], axis=0) for side in (challenger, baseline)]
    # Thirds minus thirds leaves 1e-17 where nothing differs.
    by_image: NDArray[np.float64] = np.round(means[0] - means[1], 12)
    return by_image


def _pair(challenger: Sequence[Cell], baseline: Sequence[Cell], marks: tuple[str, ...]) -> Pair:
    """A pair before the p-values of all pairs are known; its verdict comes in `_decide`."""
    first, second = challenger[0], baseline[0]
    seeds = min(len(challenger), len(baseline))
    rows = _row(challenger), _row(baseline)
    pair = Pair(
        dataset=first.dataset,
        challenger=first.label,
        baseline=second.label,
        n=first.n,
        seeds=seeds,
        delta_pp=100 * (rows[0].top1 - rows[1].top1),
        interval_pp=None,
        gained=0,
        lost=0,
        test="none: the images differ",
        p=None,
        p_holm=None,
        seed_deltas_pp=(),
        seed_p=None,
        verdict="not comparable",
        intervals_overlap=rows[0].interval.overlaps(rows[1].interval),
        marks=marks,
    )
    if first.test_fingerprint != second.test_fingerprint or not np.array_equal(first.ids, second.ids):
        return pair
    by_image = differences(challenger, baseline)
    gained, lost = int(np.count_nonzero(by_image > 0)), int(np.count_nonzero(by_image < 0))
    seed_deltas = _seed_deltas(rows[0], rows[1])
    single = len(challenger) == len(baseline) == 1
    return replace(
        pair,
        interval_pp=paired_interval(by_image).scaled(100),
        gained=gained,
        lost=lost,
        test="McNemar, exact" if single else "sign-flip over images",
        p=mcnemar(gained, lost) if single else sign_flip(by_image),
        seed_deltas_pp=tuple(100 * float(delta) for delta in seed_deltas),
        seed_p=sign_flip(seed_deltas) if len(seed_deltas) > 1 else None,
    )


def _seed_deltas(challenger: Row, baseline: Row) -> NDArray[np.float64]:
    """Float (k,): differences of top-1 for the k seeds that both sides have."""
    first = dict(zip(challenger.seeds, challenger.top1_by_seed, strict=True))
    second = dict(zip(baseline.seeds, baseline.top1_by_seed, strict=True))
    return np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


def _decide(
    pairs: Sequence[Pair], groups: dict[tuple[str, str], list[Cell]], margin_pp: float | None
) -> list[Pair]:
    """Holm over all pairs that were tested, then a verdict for each."""
    tested = [pair for pair in pairs if pair.p is not None]
    adjusted = iter(holm([pair.p for pair in tested if pair.p is not None]))
    decided = []
    for pair in pairs:
        if pair.p is None:
            decided.append(pair)
            continue
        p_holm = next(adjusted)
        verdict: Verdict = "no difference shown"
        if pair.marks:
            verdict = "not comparable"
        elif p_holm < ALPHA:
            verdict = "better" if pair.delta_pp > 0 else "worse"
        elif margin_pp is not None:
            sides = groups[pair.dataset, pair.challenger], groups[pair.dataset, pair.baseline]
            if equivalent(differences(*sides), margin_pp / 100):
                verdict = "equivalent"
        decided.append(replace(pair, p_holm=p_holm, verdict=verdict))
    return decided

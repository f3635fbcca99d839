"""The gate: may the challenger take the champion's place? Three verdicts, each with its evidence.

    for each dataset, on the same locked test images, seeds pooled image by image:
        difference, two-sided interval, paired test, p after Holm over the datasets   (pipeline/transfer)
        bound: one-sided lower bound of the difference
    fail          worse by the margin or more on one, below a floor, or a guard does not hold
    inconclusive  the bound lies below -margin only because too few images tell; says how many would do
    pass          the bound of every dataset lies above -margin (superior: and one is better after Holm)

Not being worse is an "and" over the datasets and needs no correction; a claim of being better does (Holm).
With few images on which the two disagree the bootstrap is too sure of itself, so the exact binomial bound
of the disagreeing images is taken where it is lower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.config import GateSettings
from pipeline.errors import UserError
from pipeline.transfer.comparison import Pair
from pipeline.transfer.results import Cell, compare, differences
from pipeline.transfer.statistics import paired_interval

Answer = Literal["pass", "fail", "inconclusive"]
CHALLENGER, CHAMPION = "challenger", "champion"
# Below so many disagreeing images the exact bound is looked at too.
_FEW = 25


@dataclass(frozen=True, kw_only=True)
class DatasetEvidence:
    """One dataset; differences in percentage points, challenger minus champion.

    Args:
        bound_pp: one-sided lower bound at the gate's confidence.
        needed: test images that would settle it if the difference stayed as it is; None: none were asked for.
    """

    dataset: str
    n: int
    seeds: int
    challenger: float
    champion: float | None = None
    delta_pp: float | None = None
    interval_pp: tuple[float, float] | None = None
    bound_pp: float | None = None
    gained: int = 0
    lost: int = 0
    test: str = ""
    p: float | None = None
    p_holm: float | None = None
    needed: int | None = None
    verdict: Answer = "pass"
    why: str = ""
    fingerprint: str = ""
    protocol: str = ""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict, one sentence for it, and what it rests on. `guards`: name → "" or what is wrong."""

    verdict: Answer
    why: str
    needed: int | None
    datasets: tuple[DatasetEvidence, ...]
    guards: dict[str, str]


def judge(
    challenger: Sequence[Cell],
    champion: Sequence[Cell] | None,
    settings: GateSettings,
    guards: dict[str, str] | None = None,
) -> Judgement:
    """The verdict over all datasets.

    Args:
        challenger, champion: cells of the pre-trained start; None: there is no champion yet.
        guards: checks of the weights themselves, made by the caller.
    """
    guards = dict(guards or {})
    if not challenger:
        return Judgement(verdict="fail", why="no evaluation", needed=None, datasets=(), guards=guards)
    if champion is None:
        found = _alone(challenger)
    else:
        try:
            found = _side_by_side(challenger, champion, settings)
        except UserError as error:
            why = f"cannot be compared with the champion: {error.found}"
            return Judgement(verdict="inconclusive", why=why, needed=None, datasets=(), guards=guards)
    found = [_above_floor(item, settings.floors.get(item.dataset)) for item in found]
    if settings.rule == "superior" and champion is not None:
        found = _superior(found, settings)
    return _over_all(found, guards)


def _over_all(found: Sequence[DatasetEvidence], guards: dict[str, str]) -> Judgement:
    broken = [f"{name}: {fault}" for name, fault in guards.items() if fault]
    failed = [item for item in found if item.verdict == "fail"]
    open_ = [item for item in found if item.verdict == "inconclusive"]
    needed = [item.needed for item in open_]
    verdict: Answer = "fail" if broken or failed else "inconclusive" if open_ else "pass"
    said = broken or [f"{item.dataset}: {item.why}" for item in failed or open_ or found]
    return Judgement(
        verdict=verdict,
        why="; ".join(said),
        needed=max((n for n in needed if n is not None), default=None) if verdict == "inconclusive" else None,
        datasets=tuple(found),
        guards=guards,
    )


def _alone(cells: Sequence[Cell]) -> list[DatasetEvidence]:
    rows = compare(_labelled(cells, CHALLENGER), CHAMPION).rows
    return [
        DatasetEvidence(
            dataset=row.dataset,
            n=row.n,
            seeds=len(row.seeds),
            challenger=row.top1,
            why="there is no champion yet",
            fingerprint=row.test_fingerprint,
            protocol=row.protocol,
        )
        for row in rows
    ]


def _labelled(cells: Sequence[Cell], label: str) -> list[Cell]:
    return [replace(cell, label=label) for cell in cells]


def _side_by_side(
    challenger: Sequence[Cell], champion: Sequence[Cell], settings: GateSettings
) -> list[DatasetEvidence]:
    cells = [*_labelled(challenger, CHALLENGER), *_labelled(champion, CHAMPION)]
    comparison = compare(cells, CHAMPION)
    pairs = {pair.dataset: pair for pair in comparison.pairs}
    found = []
    for name in comparison.datasets:
        new, old = comparison.row(name, CHALLENGER), comparison.row(name, CHAMPION)
        if new is None:
            # A dataset was taken out of the settings: nothing is asked of it any more.
            continue
        base = DatasetEvidence(
            dataset=name,
            n=new.n,
            seeds=len(new.seeds),
            challenger=new.top1,
            fingerprint=new.test_fingerprint,
            protocol=new.protocol,
        )
        if old is None:
            why = "the champion was never evaluated on it"
            found.append(replace(base, verdict="inconclusive", why=why))
            continue
        sides = [[c for c in cells if (c.dataset, c.label) == (name, x)] for x in (CHALLENGER, CHAMPION)]
        values = differences(sides[0], sides[1])
        found.append(_noninferior(replace(base, champion=old.top1), pairs[name], values, settings))
    return found


def _noninferior(
    base: DatasetEvidence, pair: Pair, values: NDArray[np.float64], settings: GateSettings
) -> DatasetEvidence:
    bound = 100 * lower_bound(values, pair.gained, pair.lost, settings.confidence)
    interval = pair.interval_pp
    item = replace(
        base,
        delta_pp=pair.delta_pp,
        interval_pp=(interval.low, interval.high) if interval else None,
        bound_pp=bound,
        gained=pair.gained,
        lost=pair.lost,
        test=pair.test,
        p=pair.p,
        p_holm=pair.p_holm,
    )
    margin, shown = settings.margin_pp, f"{pair.delta_pp:+.2f} pp, at least {bound:+.2f}"
    if bound > -margin:
        return replace(item, why=f"{shown}, above -{margin:g}")
    if pair.delta_pp <= -margin:
        return replace(item, verdict="fail", why=f"{pair.delta_pp:+.2f} pp, worse by {margin:g} or more")
    needed = images_needed(values, margin / 100, settings.confidence)
    why = f"{shown}, which {margin:g} may exceed; needs about {needed} images, has {pair.n}"
    return replace(item, verdict="inconclusive", needed=needed, why=why)


def lower_bound(values: NDArray[np.float64], gained: int, lost: int, confidence: float) -> float:
    """One-sided lower bound of the mean difference, as a share.

    Args:
        values: float (n,), challenger minus champion of each image.
        gained, lost: images that the challenger, the champion gets right more often.
    """
    bound = paired_interval(values, confidence=2 * confidence - 1).low
    differing = gained + lost
    if 0 < differing < _FEW:
        exact = stats.binomtest(gained, differing, alternative="greater").proportion_ci(confidence).low
        bound = min(bound, (2 * float(exact) - 1) * differing / len(values))
    return bound


def images_needed(values: NDArray[np.float64], margin: float, confidence: float) -> int:
    """Images for which the bound would lie above -margin if mean and spread stayed as they are (normal)."""
    room = float(np.mean(values)) + margin
    assert room > 0, "no number of images helps"
    spread = float(np.std(values))
    if spread == 0:
        return math.ceil(math.log(1 - confidence) / math.log1p(-min(margin, 0.999)))
    z = float(stats.norm.ppf(confidence))
    return max(len(values) + 1, math.ceil((z * spread / room) ** 2))


def _above_floor(item: DatasetEvidence, floor: float | None) -> DatasetEvidence:
    if floor is None or item.challenger >= floor:
        return item
    return replace(item, verdict="fail", why=f"{item.challenger:.3f} right, below the floor {floor:g}")


def _superior(found: Sequence[DatasetEvidence], settings: GateSettings) -> list[DatasetEvidence]:
    """One dataset must be better after Holm; where none is, those that are not better say so."""
    alpha = 1 - settings.confidence
    tested = [item for item in found if item.delta_pp is not None and item.p_holm is not None]
    if any((item.delta_pp or 0) > 0 and (item.p_holm or 0) < alpha for item in tested):
        return list(found)
    best = max((item.delta_pp or 0 for item in tested), default=0.0)
    answer: Answer = "inconclusive" if best > 0 else "fail"
    return [
        replace(item, verdict=answer, why=f"{item.delta_pp:+.2f} pp, not shown to be better")
        if item.verdict == "pass" and item.delta_pp is not None
        else item
        for item in found
    ]

"""What a comparison is: rows, pairs and verdicts, as plain frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.transfer.cells import Cost, Pretraining
from pipeline.transfer.means import Mean
from pipeline.transfer.statistics import Interval

Verdict = Literal["better", "worse", "no difference shown", "equivalent", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One label on one dataset; shares between 0 and 1.

    Args:
        top1: mean over seeds. top1_by_seed: in the order of `seeds`.
        interval: Wilson, 95 %, of `top1` on n images; covers the choice of images.
        seed_interval: t, 95 %, of the mean over seeds; covers the choice of seeds. None for one seed.
        cost: mean over seeds of all trainings behind a cell. cost_by_stage: the same by stage.
        pretraining: of the first seed; they share it.
    """

    dataset: str
    label: str
    seeds: tuple[int, ...]
    n: int
    top1: float
    top1_by_seed: tuple[float, ...]
    interval: Interval
    seed_interval: Interval | None
    learning_rates: tuple[float, ...]
    protocol: str
    test_fingerprint: str
    cost: Cost
    cost_by_stage: dict[str, Cost]
    pretraining: Pretraining | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Challenger minus baseline on the images of one dataset; differences in percentage points.

    Args:
        interval_pp: BCa bootstrap, 95 %, resampled by image; None when the images differ.
        gained, lost: images that only the challenger, only the baseline gets right (by the mean
            over seeds: more often, less often).
        p, test: McNemar for one seed a side, else sign-flip over images. p_holm: over all pairs.
        seed_deltas_pp: of the seeds that both sides have, in their order.
        seed_p: sign-flip over these; shown, not decisive: it cannot be below 2 / 2 ** seeds.
        intervals_overlap: whether the two Wilson intervals do.
        marks: why the pair must not be read as a result; empty unless forced.
    """

    dataset: str
    challenger: str
    baseline: str
    n: int
    seeds: int
    delta_pp: float
    interval_pp: Interval | None
    gained: int
    lost: int
    test: str
    p: float | None
    p_holm: float | None
    seed_deltas_pp: tuple[float, ...]
    seed_p: float | None
    verdict: Verdict
    intervals_overlap: bool
    marks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows and pairs of one comparison; `warnings` are sentences for the reader.

    `means`: over the datasets of each group, where the protocol has groups.
    """

    baseline: str
    labels: tuple[str, ...]
    datasets: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[Pair, ...]
    margin_pp: float | None
    warnings: tuple[str, ...]
    means: tuple[Mean, ...] = ()

    def row(self, dataset: str, label: str) -> Row | None:
        return next((r for r in self.rows if (r.dataset, r.label) == (dataset, label)), None)

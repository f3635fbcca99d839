"""Rows, pairs and verdicts, on cells built by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.transfer.results import compare
from pipeline.transfer.statistics import mcnemar, sign_flip, wilson
from tests.helpers.cells import make_cell, two_sides


def test_one_seed_is_compared_by_mcnemar() -> None:
    result = compare(two_sides(40, 10, 120, 30))
    (pair,) = result.pairs
    assert (pair.challenger, pair.baseline, pair.gained, pair.lost, pair.n) == (
        "pretrained",
        "scratch",
        40,
        10,
        200,
    )
    assert pair.delta_pp == pytest.approx(15.0)
    assert pair.test == "McNemar, exact"
    assert pair.p == mcnemar(40, 10)
    assert pair.p_holm == pair.p
    assert pair.interval_pp is not None
    assert pair.interval_pp.low < 15 < pair.interval_pp.high
    assert pair.verdict == "better"
    assert not pair.intervals_overlap
    assert any("1 seed in" in line for line in result.warnings)


def test_rows_give_the_interval_on_n_images_whatever_the_seeds() -> None:
    seeds = [make_cell(np.repeat([1, 0], [70 + k, 30 - k]), seed=k) for k in range(3)]
    (row,) = compare(seeds).rows
    assert row.seeds == (0, 1, 2)
    assert row.top1 == pytest.approx(0.71)
    assert row.interval == wilson(row.top1, 100)
    assert row.seed_interval is not None
    # t(0.975, 2) = 4.3027 times 0.01 / sqrt(3)
    assert row.seed_interval.high - row.top1 == pytest.approx(4.30265 * 0.01 / 3**0.5, rel=1e-4)
    assert compare(seeds).pairs == ()
    assert compare(seeds[:1]).rows[0].seed_interval is None


def test_several_seeds_are_compared_on_their_mean_by_image() -> None:
    generator = np.random.default_rng(0)
    cells = [
        make_cell(generator.random(300) < share, label=label, start=label, seed=seed)
        for label, share in (("pretrained", 0.8), ("scratch", 0.6))
        for seed in range(3)
    ]
    (pair,) = compare(cells).pairs
    by_image = np.mean([c.correct for c in cells[:3]], axis=0) - np.mean(
        [c.correct for c in cells[3:]], axis=0
    )
    assert pair.test == "sign-flip over images"
    assert pair.p == sign_flip(by_image)
    assert pair.delta_pp == pytest.approx(100 * by_image.mean())
    assert pair.seed_p == 0.25
    assert pair.verdict == "better"


def test_worse_and_no_difference() -> None:
    assert compare(two_sides(10, 40, 120, 30)).pairs[0].verdict == "worse"
    assert compare(two_sides(12, 10, 150, 28)).pairs[0].verdict == "no difference shown"


def test_equivalence_needs_a_margin_and_enough_images() -> None:
    close = two_sides(40, 40, 9000, 920)
    assert compare(close).pairs[0].verdict == "no difference shown"
    assert compare(close, margin_pp=0.5).pairs[0].verdict == "equivalent"
    assert compare(two_sides(4, 4, 90, 2), margin_pp=0.5).pairs[0].verdict == "no difference shown"


def test_holm_runs_over_all_pairs() -> None:
    # Alone, p = 0.039 would be a verdict; among three datasets it is none.
    weak = [two_sides(8, 1, 80, 11, dataset=name) for name in ("a", "b", "c")]
    assert compare(weak[0]).pairs[0].verdict == "better"
    together = compare([c for pair in weak for c in pair])
    assert [pair.verdict for pair in together.pairs] == ["no difference shown"] * 3
    assert together.pairs[0].p_holm == pytest.approx(3 * mcnemar(8, 1))


def test_different_test_splits_are_refused_by_name() -> None:
    first, second = two_sides(40, 10, 120, 30)
    second = replace(second, test_fingerprint="e" * 64)
    with pytest.raises(
        UserError, match="test splits differ on digits: pretrained ffffffffffff, scratch eeeeeeeeeeee"
    ):
        compare([first, second])
    (pair,) = compare([first, second], force=True).pairs
    assert pair.verdict == "not comparable"
    assert pair.p is None
    assert pair.interval_pp is None
    assert "test splits differ" in pair.marks[0]


def test_different_protocols_are_refused_by_name_and_setting() -> None:
    first, second = two_sides(40, 10, 120, 30)
    other = {"tuned": {"protocol": {"duration": "500 steps"}}}
    second = replace(second, protocol_settings=other)
    with pytest.raises(UserError, match=r"protocols differ on digits.*duration 100 steps or 500 steps"):
        compare([first, second])
    result = compare([first, replace(second, protocol="vtab")], force=True)
    assert result.pairs[0].verdict == "not comparable"
    assert result.pairs[0].p is not None
    assert "pretrained quick, scratch vtab" in result.warnings[0]


def test_other_images_of_the_same_split_are_refused() -> None:
    first, second = two_sides(40, 10, 120, 30)
    with pytest.raises(UserError, match="different images of the test split of digits"):
        compare([first, replace(second, ids=second.ids + 1)])


def test_two_results_for_one_seed_are_refused() -> None:
    first, second = two_sides(40, 10, 120, 30)
    with pytest.raises(
        UserError, match=r"scratch on digits has several results for one seed: 0 \(d\), 0 \(again\)"
    ):
        compare([first, second, replace(second, digest="again")])


def test_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="no finished evaluation"):
        compare([])


def test_missing_cells_are_named() -> None:
    first, second = two_sides(40, 10, 120, 30)
    alone = replace(first, dataset="count")
    result = compare([first, second, alone])
    assert "no result for scratch on count" in result.warnings
    assert len(result.pairs) == 1
    assert "no result for the baseline scratch: nothing was compared" in compare([first]).warnings


def test_the_baseline_is_a_label() -> None:
    (pair,) = compare(two_sides(40, 10, 120, 30), baseline="pretrained").pairs
    assert (pair.challenger, pair.delta_pp) == ("scratch", pytest.approx(-15.0))
    assert pair.verdict == "worse"


def test_seeds_that_contradict_a_verdict_are_named() -> None:
    first, second = two_sides(40, 4, 126, 30)
    # The other seed of each side: scratch a little ahead.
    third, fourth = (replace(cell, seed=1) for cell in two_sides(4, 6, 160, 30))
    result = compare([first, second, third, fourth])
    (pair,) = result.pairs
    assert pair.verdict == "better"
    assert pair.seed_deltas_pp == (pytest.approx(18.0), pytest.approx(-1.0))
    assert any("its seeds do not agree: +18.0, -1.0 pp" in line for line in result.warnings)
    agreeing = compare([first, second, replace(first, seed=1), replace(second, seed=1)])
    assert not any("do not agree" in line for line in agreeing.warnings)

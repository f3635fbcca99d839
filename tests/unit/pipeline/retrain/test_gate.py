"""The gate on invented predictions: what passes, what fails, and what cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import GateSettings
from pipeline.retrain.gate import Judgement, images_needed, judge, lower_bound
from pipeline.transfer.results import Cell


def cell(correct: np.ndarray, dataset: str = "digits", fingerprint: str = "aaaa") -> Cell:
    n = len(correct)
    return Cell(
        digest="d",
        dataset=dataset,
        label="pretrained",
        start="pretrained",
        seed=0,
        protocol="quick",
        protocol_settings={},
        n=n,
        top1=float(np.mean(correct)),
        ids=np.arange(n, dtype=np.int64),
        correct=correct.astype(bool),
        labels=np.zeros(n, np.int32),
        predictions=np.zeros(n, np.int32),
        classes=("a",),
        test_fingerprint=fingerprint,
        learning_rate=0.1,
        cost={},
    )


def pair(n: int, gained: int, lost: int, **named: str) -> tuple[Cell, Cell]:
    """Challenger and champion that differ on `gained` and `lost` images; both right on the rest."""
    new, old = np.ones(n), np.ones(n)
    old[:gained] = 0
    new[gained : gained + lost] = 0
    return cell(new, **named), cell(old, **named)


def verdict(n: int, gained: int, lost: int, **settings: object) -> Judgement:
    new, old = pair(n, gained, lost)
    return judge([new], [old], GateSettings.model_validate({"margin_pp": 1.0, **settings}))


def test_three_verdicts() -> None:
    assert verdict(10_000, 100, 100).verdict == "pass"
    assert verdict(10_000, 100, 250).verdict == "fail"
    few = verdict(500, 10, 10)
    assert few.verdict == "inconclusive"
    assert few.needed is not None
    assert "needs about" in few.why
    # The formula of a normal bound: (z / margin)² (b + c) / n, at no difference.
    assert few.needed == pytest.approx((1.645 / 0.01) ** 2 * 20 / 500, rel=0.01)
    assert verdict(few.needed * 2, round(few.needed * 0.04), round(few.needed * 0.04)).verdict == "pass"


def test_superior_needs_one_that_is_better() -> None:
    assert verdict(10_000, 200, 100, rule="superior").verdict == "pass"
    assert verdict(10_000, 105, 100, rule="superior").verdict == "inconclusive"
    assert verdict(10_000, 100, 105, rule="superior").verdict == "fail"


def test_one_bad_dataset_is_enough() -> None:
    good, bad = pair(5000, 80, 20), pair(5000, 20, 120, dataset="count")
    found = judge([good[0], bad[0]], [good[1], bad[1]], GateSettings(margin_pp=1))
    assert found.verdict == "fail"
    assert found.why.startswith("count:")
    by_name = {item.dataset: item for item in found.datasets}
    assert by_name["digits"].verdict == "pass"
    assert by_name["digits"].p_holm == pytest.approx(2 * (by_name["digits"].p or 0), rel=2)
    assert by_name["count"].delta_pp == pytest.approx(-2)


def test_other_test_images_cannot_be_compared() -> None:
    new, _ = pair(1000, 0, 0)
    _, old = pair(1000, 0, 0, fingerprint="bbbb")
    found = judge([new], [old], GateSettings())
    assert found.verdict == "inconclusive"
    assert "test splits differ" in found.why


def test_without_a_champion_only_floors_and_guards_speak() -> None:
    new, _ = pair(1000, 0, 400)
    assert judge([new], None, GateSettings()).verdict == "pass"
    assert judge([new], None, GateSettings(floors={"digits": 0.7})).verdict == "fail"
    broken = judge([new], None, GateSettings(), {"weights are finite": "head.weight is not"})
    assert broken.verdict == "fail"
    assert "head.weight" in broken.why


def test_few_differing_images_use_the_exact_bound() -> None:
    values = np.zeros(100)
    values[:3] = -1
    assert lower_bound(values, 0, 3, 0.95) <= -0.03
    values[:3] = 1
    # Three of three: p is 1/8, so the share of gains may be as low as 0.05 ** (1 / 3).
    assert lower_bound(values, 3, 0, 0.95) == pytest.approx((2 * 0.05 ** (1 / 3) - 1) * 0.03)


def test_more_images_are_needed_for_less_room() -> None:
    values = np.array([1.0, -1.0] + [0.0] * 98)
    assert images_needed(values, 0.01, 0.95) > images_needed(values, 0.02, 0.95) > 100

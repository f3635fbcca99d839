"""Means over groups of datasets: weights, missing tasks, intervals."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.transfer.means import means_of
from pipeline.transfer.results import compare
from pipeline.transfer.statistics import stratified_interval
from tests.helpers.cells import two_sides

GROUPS = {"natural": ("a", "b", "c"), "structured": ("d",)}


def test_a_group_counts_its_tasks_alike_and_the_mean_of_groups_its_groups() -> None:
    top1 = {("a", "x"): 0.2, ("b", "x"): 0.4, ("c", "x"): 0.6, ("d", "x"): 0.8}
    found = {mean.name: mean.top1 for mean in means_of(GROUPS, top1, {}, ["x"])}
    assert found == {
        "natural (3)": pytest.approx(0.4),
        "structured (1)": pytest.approx(0.8),
        "mean of groups (4)": pytest.approx(0.6),
        "mean of tasks (4)": pytest.approx(0.5),
    }


def test_tasks_that_a_label_lacks_leave_all_means_and_the_name_says_so() -> None:
    top1 = {("a", "x"): 0.2, ("b", "x"): 0.4, ("a", "y"): 0.3, ("d", "x"): 0.5, ("d", "y"): 0.5}
    found = {(mean.name, mean.label): mean.top1 for mean in means_of(GROUPS, top1, {}, ["x", "y"])}
    assert found["natural (1 of 3)", "x"] == pytest.approx(0.2)
    assert found["mean of groups (2 of 4)", "y"] == pytest.approx(0.4)


def test_the_interval_is_of_the_weighted_sum_of_means() -> None:
    chance = np.random.default_rng(0)
    sides = [chance.normal(0.1, 1, 400), chance.normal(0.3, 2, 900)]
    interval = stratified_interval(sides, [0.5, 0.5])
    centre = (sides[0].mean() + sides[1].mean()) / 2
    error = np.sqrt(sides[0].var(ddof=1) / 400 + sides[1].var(ddof=1) / 900) / 2
    assert (interval.low + interval.high) / 2 == pytest.approx(centre)
    assert interval.high - interval.low == pytest.approx(2 * 1.959964 * error)


def test_a_comparison_has_the_means_of_its_groups() -> None:
    cells = [*two_sides(20, 5, 50, 25, dataset="a"), *two_sides(10, 10, 60, 20, dataset="d")]
    found = compare(cells, groups=GROUPS)
    mean = next(mean for mean in found.means if mean.name.startswith("mean of groups") and mean.delta_pp)
    assert mean.label == "pretrained"
    assert mean.delta_pp == pytest.approx((15 + 0) / 2)
    assert mean.interval_pp is not None
    assert mean.interval_pp.low < 7.5 < mean.interval_pp.high
    assert compare(cells).means == ()

"""Plots of the cases that a usual run does not have."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest

from pipeline.report import plots
from pipeline.report.curves import Curve
from pipeline.transfer.cells import Cost
from pipeline.transfer.results import compare
from tests.helpers.cells import two_sides


def curve(*steps: int) -> Curve:
    return Curve(steps, tuple(1.0 / step for step in steps), steps, (), (), 0, 1.0)


@pytest.mark.parametrize(
    ("cost", "axis"),
    [
        (Cost(images=3e4), "images seen in training"),
        (Cost(images=3e4, exaflops=2e-6), "training compute"),
        (Cost(), "images seen in training"),
    ],
)
def test_compute_is_in_images_where_operations_were_not_counted(cost: Cost, axis: str) -> None:
    cells = [replace(cell, cost={"finetune": cost}) for cell in two_sides(40, 10, 120, 30)]
    assert axis in plots.compute(compare(cells)).svg


def test_a_pair_that_must_not_be_compared_has_no_interval() -> None:
    first, second = two_sides(40, 10, 120, 30)
    drawing = plots.forest(compare([first, replace(second, test_fingerprint="e" * 64)], force=True))
    assert "+15.0  [–]" in drawing.svg


def test_names_of_near_points_are_moved_apart() -> None:
    cells = [cell for name in "abcdefgh" for cell in two_sides(40, 10, 120, 30, dataset=f"set-{name}")]
    svg = plots.compute(compare(cells)).svg
    heights = [float(re.findall(rf'y="([\d.]+)"[^>]*>set-{name}<', svg)[0]) for name in "abcdefgh"]
    gaps = [abs(first - second) for first, second in itertools.pairwise(heights)]
    assert min(gaps) > 8  # points; the text is 8 high


def test_curves_of_one_point_and_of_seeds_that_share_no_step() -> None:
    drawing = plots.finetuning(
        {"a": {"scratch": [curve(6)]}, "b": {"scratch": [curve(1, 2), curve(3)]}}, ["scratch"]
    )
    assert "<svg" in drawing.svg
    assert "<svg" in plots.pretraining(curve(1)).svg

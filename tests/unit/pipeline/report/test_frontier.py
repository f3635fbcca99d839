"""Accuracy against compute and against pre-training size, with points whose order is known."""

from __future__ import annotations

import re
from dataclasses import replace

from pipeline.report.frontier import (
    frontier,
    frontier_plot,
    frontier_sheet,
    pareto,
    size_plot,
    size_sheet,
    sized,
)
from pipeline.transfer.cells import Cell, Cost, Pretraining
from pipeline.transfer.results import compare
from tests.helpers.cells import make_cell


def of(label: str, share: float, exaflops: float, **changes: object) -> Cell:
    right = [1] * round(100 * share) + [0] * round(100 * (1 - share))
    cost = {"finetune": Cost(images=100, exaflops=exaflops)}
    return replace(make_cell(right, label=label), cost=cost, **changes)  # type: ignore[arg-type]


def test_the_front_is_what_nobody_beats() -> None:
    found = {
        (1.0, 0.5): True,  # cheap and bad
        (9.0, 0.8): True,  # dear and good
        (9.5, 0.7): False,  # dearer and worse
        (9.5, 0.8): False,  # dearer and no better
        (9.0, 0.6): False,  # as dear and worse
    }
    costs, values = zip(*found, strict=True)
    assert pareto(costs, values) == list(found.values())
    assert pareto([9.0, 9.0], [0.8, 0.8]) == [True, True], "equals do not push each other off"
    assert pareto([3.0], [0.1]) == [True]


def test_the_mean_is_over_datasets_that_all_have() -> None:
    cells = [of("a", 0.5, 1e-6), of("b", 0.7, 4e-6), of("b", 0.1, 4e-6, dataset="only b")]
    found = frontier(compare(cells, "a"))
    assert found is not None
    assert found.datasets == ("digits",)
    assert {p.label: (p.compute, round(p.top1, 6)) for p in found.points} == {
        "a": (1e-6, 0.5),
        "b": (4e-6, 0.7),
    }


def test_a_dominated_model_is_hollow_and_says_so() -> None:
    cells = [of("a", 0.5, 1e-6), of("b", 0.7, 4e-6), of("c", 0.6, 5e-6)]
    found = frontier(compare(cells, "a"))
    assert found is not None
    assert [(line.cells[0], line.cells[-1]) for line in frontier_sheet(found).rows] == [
        ("a", "yes"),
        ("b", "yes"),
        ("c", "no"),
    ]
    drawing = frontier_plot(found)
    assert "Pareto front" in drawing.svg
    assert drawing.svg.count("fill: var(--page)") == 1, "one marker is hollow"


def test_there_is_no_front_of_one_model_or_of_nothing_counted() -> None:
    assert frontier(compare([of("a", 0.5, 1e-6)], "a")) is None
    uncounted = [replace(of(name, 0.5, 0), cost={"finetune": Cost()}) for name in "ab"]
    assert frontier(compare(uncounted, "a")) is None


def test_operations_that_one_run_did_not_count_give_images() -> None:
    cells = [of("a", 0.5, 1e-6), replace(of("b", 0.7, 0), cost={"finetune": Cost(images=300)})]
    found = frontier(compare(cells, "a"))
    assert found is not None
    assert (found.unit, [point.compute for point in found.points]) == ("images", [300, 100])


def pretrained(images: int | None, model: str = "vit_b16") -> Pretraining:
    return Pretraining(model=model, data=("photos",), images=images)


def test_pre_training_sizes_are_shown_where_they_differ() -> None:
    cells = [
        of("small", 0.5, 1e-6, pretraining=pretrained(1000)),
        of("large", 0.7, 4e-6, pretraining=pretrained(100_000)),
        of("other", 0.8, 4e-6, pretraining=pretrained(100_000, "vit_l16 depth=<b>")),
        of("scratch", 0.2, 1e-7),
        of("lost", 0.3, 1e-6, pretraining=pretrained(None)),
    ]
    rows = sized(compare(cells, "scratch"))
    assert [row.label for row in rows] == ["small", "large", "other"]
    sheet = size_sheet(rows)
    assert [line.cells[4] for line in sheet.rows] == ["1\u202f000", "100\u202f000", "100\u202f000"]
    svg = size_plot(rows).svg
    assert "images of the pre-training" in svg
    assert re.search(r">vit_b16<", svg)
    assert "<b>" not in svg
    assert sized(compare(cells[1:3], "large")) == []

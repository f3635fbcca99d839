"""Confusions counted by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pipeline.report.confusion import class_sheets, confusion_maps, confusion_sheet, confusions
from pipeline.transfer.cells import Cell
from tests.helpers.cells import make_cell


def cell(labels: list[int], predictions: list[int], **changes: object) -> Cell:
    made = make_cell([a == b for a, b in zip(labels, predictions, strict=True)])
    return replace(
        made,
        labels=np.array(labels, np.int32),
        predictions=np.array(predictions, np.int32),
        classes=("ant", "bee", "cat"),
        **changes,  # type: ignore[arg-type]
    )


CELLS = [
    cell([0, 0, 1, 1], [0, 1, 1, 1]),
    cell([0, 0, 1, 1], [1, 1, 1, 0], seed=1),
    cell([0, 0, 1, 1], [0, 0, 0, 0], label="other"),
]


def test_seeds_are_counted_together() -> None:
    (one,) = confusions(CELLS, "scratch")
    assert one.counts.tolist() == [[1, 3, 0], [1, 3, 0], [0, 0, 0]]
    assert one.shares.tolist() == [[0.25, 0.75, 0], [0.25, 0.75, 0], [0, 0, 0]]


def test_the_most_frequent_come_first() -> None:
    sheet = confusion_sheet(confusions(CELLS, "scratch"))
    assert [tuple(line.cells) for line in sheet.rows] == [
        ("digits", "ant", "bee", "3", "75.0 %"),
        ("", "bee", "ant", "1", "25.0 %"),
    ]


def test_every_class_that_has_images_is_listed_the_hardest_first() -> None:
    found = {label: confusions(CELLS, label) for label in ("scratch", "other")}
    ((title, sheet),) = class_sheets(found)
    assert title == "digits"
    assert [tuple(line.cells) for line in sheet.rows] == [
        ("ant", "4", "25.0 %", "100.0 %"),
        ("bee", "4", "75.0 %", "0.0 %"),
    ]


def test_a_prediction_beyond_the_named_classes_has_its_number() -> None:
    sheet = confusion_sheet(confusions([cell([0], [5])], "scratch"))
    assert sheet.rows[0].cells[2] == "5"


def test_the_map_names_few_classes_and_not_many() -> None:
    few = confusion_maps(confusions(CELLS, "scratch")).svg
    assert ">bee<" in few
    many = [replace(CELLS[0], classes=tuple(f"class-{k}" for k in range(30)))]
    assert "class-" not in confusion_maps(confusions(many, "scratch")).svg

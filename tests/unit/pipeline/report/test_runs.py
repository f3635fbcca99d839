"""The page and the tables of several runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from pipeline.report.runs import cost_table, settings_table, write_runs_page
from pipeline.transfer.cells import Pretraining
from pipeline.transfer.results import compare
from tests.helpers.cells import two_sides

DIFFERING = [("pretrain.duration", ("300 steps", "<b>900</b>")), ("pretrain.model.options.depth", (None, 4))]


def test_the_page_of_two_runs(tmp_path: Path) -> None:
    comparison = compare(two_sides(40, 10, 120, 30))
    path = tmp_path / "compare.html"
    write_runs_page(path, comparison, DIFFERING, ["scratch", "pretrained"], "vitline compare a b")
    text = path.read_text()
    assert "Which of 2 runs transfers better?" in text
    assert "&lt;b&gt;900&lt;/b&gt;" in text
    assert "Settings that differ" in text
    assert "<script" not in text


def test_groups_and_sizes_are_shown_where_there_are_any(tmp_path: Path) -> None:
    cells = [
        replace(cell, dataset=name, pretraining=Pretraining(model="vit_b16", data=("p",), images=images))
        for name in ("digits", "count")
        for cell, images in zip(two_sides(40, 10, 120, 30), (90_000, 1_000), strict=True)
    ]
    path = tmp_path / "compare.html"
    comparison = compare(cells, groups={"natural": ["digits", "gone"], "structured": ["count"]})
    write_runs_page(path, comparison, [], ["scratch", "pretrained"], "vitline compare a b")
    text = path.read_text()
    assert "natural (1 of 2)" in text
    assert 'id="fig-size"' in text
    assert 'id="fig-frontier"' in text
    write_runs_page(path, compare(two_sides(40, 10, 120, 30)), [], ["a", "b"], "vitline compare a b")
    assert not {'id="fig-size"', 'id="groups"'} & set(path.read_text().split())


def test_tables_for_the_terminal() -> None:
    comparison = compare(two_sides(40, 10, 120, 30))
    console = Console(file=io.StringIO(), width=140)
    console.print(settings_table(comparison, DIFFERING, ["scratch", "pretrained"]))
    console.print(cost_table(comparison))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[0].split() == ["setting", "scratch", "(baseline)", "pretrained"]
    assert lines[2].split() == ["pretrain.model.options.depth", "–", "4"]
    assert "1 teraFLOP" in lines[-1]

"""The comparison in the terminal, as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from pipeline.report.tables import as_csv, as_dict, as_markdown, terminal_table
from pipeline.transfer.results import compare
from tests.helpers.cells import two_sides

HOSTILE = '=HYPERLINK("http://x")|[red]<b>'


def printed(dataset: str) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    console.print(terminal_table(compare(two_sides(40, 10, 120, 30, dataset=dataset))))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_table() -> None:
    first, second = printed("digits").splitlines()[1:3]
    assert " ".join(first.split()).startswith(
        "digits pretrained 1 (few) 200 80.0 % 73.9 to 85.0 +15.00 8.50 to "
    )
    assert first.rstrip().endswith("< 0.0001  better")
    assert second.split()[:2] == ["scratch", "1"]
    assert "baseline" in second


def test_names_are_no_markup() -> None:
    assert HOSTILE in printed(HOSTILE)


def test_csv_holds_numbers_in_full_and_no_formula() -> None:
    text = as_csv(compare(two_sides(40, 10, 120, 30, dataset=HOSTILE)))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["model"] for row in rows] == ["pretrained", "scratch"]
    assert rows[0]["dataset"] == "'" + HOSTILE
    assert float(rows[0]["top1"]) == 0.8
    assert float(rows[0]["delta_pp"]) == pytest.approx(15.0)
    assert rows[0]["intervals_overlap"] == "False"
    assert rows[1]["delta_pp"] == ""


def test_json_is_plain_and_complete() -> None:
    value = json.loads(json.dumps(as_dict(compare(two_sides(40, 10, 120, 30)))))
    assert value["pairs"][0]["verdict"] == "better"
    assert value["rows"][0]["interval"].keys() == {"low", "high"}
    assert value["verdicts"][0].startswith("pretrained is better")


def test_markdown_escapes_names() -> None:
    text = as_markdown(compare(two_sides(40, 10, 120, 30, dataset=HOSTILE)))
    assert "\\|\\[red\\]\\<b\\>" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {11}

"""Calibration: bins, the error, and what has no confidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.report.calibration import reliability_diagram, reliability_sheet
from pipeline.report.reliability import read_reliability
from pipeline.rundir import RunDir
from pipeline.transfer.cells import Cell
from tests.helpers.cells import make_cell


def written(
    run: RunDir, digest: str, confidence: list[float] | None, correct: list[int], **changes: str
) -> Cell:
    path = run.job(digest).predictions
    path.parent.mkdir(parents=True)
    columns = {"correct": pa.array(np.array(correct, bool))}
    if confidence is not None:
        columns["confidence"] = pa.array(np.array(confidence, np.float32))
    pq.write_table(pa.table(columns), path)
    return make_cell(correct, digest=digest, **changes)


def test_the_error_is_the_mean_gap_of_the_bins_weighted_by_images(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = written(run, "a", [0.9, 0.9, 0.5], [1, 0, 1])
    second = written(run, "b", [0.9, 1.0, 0.5], [1, 1, 0])
    found = read_reliability(run, [first, second])["digits", "scratch"]
    # Bins: 0.5 ×2 half right; 0.9 ×3 two right; 1.0 right.
    assert found.n == 6
    assert found.ece == pytest.approx((0 + abs(2.7 - 2) + 0) / 6, abs=1e-6)
    assert [number for _, _, number in found.bins] == [2, 3, 1]


def test_a_model_without_probabilities_is_left_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    cells = [
        written(run, "a", [0.9, 0.8], [1, 0]),
        written(run, "b", [float("nan"), 0.5], [1, 0], label="ridge"),
        written(run, "c", None, [1, 0], label="old"),
    ]
    assert set(read_reliability(run, cells)) == {("digits", "scratch")}


def test_the_picture_and_its_table_show_every_model(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    cells = [written(run, f"{label}", [0.9, 0.8], [1, 0], label=label) for label in ("one", "two")]
    found = read_reliability(run, cells)
    drawing = reliability_diagram(found, ["one", "two"])
    assert ">one<" in drawing.svg
    assert ">two<" in drawing.svg
    assert [line.cells[1] for line in reliability_sheet(found).rows] == ["one", "two"]

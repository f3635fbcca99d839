"""Files of a run: replaced whole, and generations that only grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.rundir import JobDir, RunDir, read_json, write_atomic, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_atomic(path, "no bytes")  # type: ignore[arg-type]
    assert read_json(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": [2]})
    write_json(tmp_path / "b", {"y": [2], "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_generations_grow(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    assert job.read_generation() == 0
    assert [job.next_generation(), job.next_generation()] == [1, 2]
    assert JobDir(tmp_path).read_generation() == 2


def test_a_job_without_result_is_not_done(tmp_path: Path) -> None:
    job = RunDir(tmp_path).job("d")
    assert job.read_result() is None
    write_json(job.result, {"metrics": {}})
    assert job.read_result() == {"metrics": {}}

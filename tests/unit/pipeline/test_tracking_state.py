"""The cursor, and metrics, parameters and tags as they are made from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.tracking_state import (
    LONGEST_PARAM,
    MOST_PARAMS,
    MOST_POINTS,
    Cursor,
    Tracked,
    clean_name,
    fingerprints,
    job_params,
    job_tags,
    params,
    points,
    report_points,
    result_points,
)
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run


def progress(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "progress", "time": 100.0 + step, "step": step, "loss": 1.0 / step, **values}


def test_points_keep_steps_and_times() -> None:
    job = Tracked()
    found = points(
        [progress(1, lr=0.5, data_wait_s=None), {"event": "validate", "time": 9.5, "step": 1, "top1": 0.5}],
        job,
    )
    assert [(p.key, p.value, p.time_ms, p.step) for p in found] == [
        ("train/loss", 1.0, 101_000, 1),
        ("train/lr", 0.5, 101_000, 1),
        ("val/top1", 0.5, 9_500, 1),
    ]
    assert points([progress(1, lr=0.5)], job) == []


def test_long_trainings_are_thinned_and_end_with_their_last_step() -> None:
    steps = 100_003
    events = [{"event": "start", "steps": steps}, *(progress(step) for step in range(1, steps + 1))]
    found = points(events, Tracked())
    assert MOST_POINTS <= len(found) <= 1.1 * MOST_POINTS
    assert found[-1].step == steps
    # In two pieces, as they come in life, the same points are chosen.
    job = Tracked()
    assert points(events[:777], job) + points(events[777:], job) == found


def test_final_numbers_do_not_repeat_the_curves() -> None:
    job = Tracked(last={"train/loss": 300})
    result = {"finished": 50.0, "metrics": {"train/loss": 0.4, "eval/top1": 0.9}, "outputs": {"steps": 300}}
    assert [(p.key, p.step) for p in result_points(result, job)] == [("eval/top1", 300)]
    assert result_points(result, job) == []


def test_report_points_have_names_that_mlflow_takes() -> None:
    summary = {
        "rows": [{"dataset": "a@b", "label": "scratch", "top1": 0.5}],
        "pairs": [{"dataset": "d", "challenger": "pretrained", "delta_pp": 3.0}],
    }
    assert [(p.key, p.value) for p in report_points(summary, 1.0)] == [
        ("top1/a_b/scratch", 0.5),
        ("delta_pp/d/pretrained", 3.0),
    ]
    assert clean_name("é<script>" + "x" * 300).startswith("__script_x")
    assert len(clean_name("x" * 300)) == 250


def test_params_are_few_and_short() -> None:
    found = params(
        {"a": {"b": 1, "c": None}, "long": "x" * 600, **{f"k{i}": i for i in range(80)}}, first="yes"
    )
    assert list(found)[:3] == ["first", "a.b", "long"]
    assert len(found) == MOST_PARAMS
    assert len(found["long"]) == LONGEST_PARAM
    assert "a.c" not in found


@pytest.mark.parametrize("state", ["waiting", "skipped"])
def test_jobs_that_did_not_run_are_no_runs(state: str) -> None:
    cursor = Cursor("s")
    cursor.apply(
        {"event": "job", "time": 1.0, "digest": "d", "name": "n", "stage": "prepare", "state": state}
    )
    assert cursor.jobs == {}


def test_jobs_of_a_driver_that_was_killed_are_stopped_when_the_next_begins() -> None:
    cursor = Cursor("s")
    job = {"event": "job", "digest": "d", "name": "n", "stage": "pretrain"}
    cursor.apply({"event": "run", "time": 1.0, "state": "started"})
    cursor.apply({**job, "time": 2.0, "state": "running"})
    cursor.apply({"event": "run", "time": 9.0, "state": "started"})
    assert (cursor.jobs["d"].state, cursor.commands, cursor.parent.state) == ("stopped", 2, "running")
    cursor.apply({**job, "time": 10.0, "state": "running"})
    assert (cursor.jobs["d"].state, cursor.jobs["d"].started) == ("running", 2.0)


def test_the_cursor_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "tracking.json"
    cursor = Cursor("s", jobs={"d": Tracked("n", last={"train/loss": 3})}, offset=7)
    cursor.save(path)
    assert Cursor.load(path, "s") == cursor
    assert Cursor.load(path, "another store").key != cursor.key
    path.write_text("{torn")
    assert Cursor.load(path, "s").jobs == {}


def test_a_job_is_described_by_its_files(tmp_path: Path) -> None:
    made = write_synthetic_run(synthetic_config(tmp_path), images=20)
    digest = made.digests["evaluate/digits/scratch/seed1"]
    job = made.run.job(digest)
    description = __import__("json").loads(job.job.read_text())
    tags = job_tags(description, digest, "synthetic", 1)
    assert tags == {
        "vitline.job": digest,
        "vitline.run": "synthetic",
        "vitline.stage": "evaluate",
        "vitline.attempt": "1",
        "vitline.dataset": "digits",
        "vitline.start": "scratch",
        "vitline.seed": "1",
        "vitline.protocol": "quick",
    }
    assert job_params(description, "c0")["digest"] == digest
    ((name, print_, context),) = fingerprints(made.run, digest)
    assert (name, context, len(print_)) == ("digits", "test", 64)
    assert [item[0::2] for item in fingerprints(made.run, made.digests["prepare/digits"])] == [
        ("digits", "test"),
        ("digits", "train"),
    ]
    assert fingerprints(made.run, "unknown") == []

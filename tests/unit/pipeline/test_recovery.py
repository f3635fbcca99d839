"""The time from a fault to the next step, out of what a gang leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.events import EventLog
from pipeline.recovery import describe, recoveries
from pipeline.rundir import JobDir


def write(job: JobDir, *events: dict[str, Any]) -> None:
    log = EventLog(job.events)
    for event in events:
        log(event)
    log.close()


def gang(time: float, phase: str) -> dict[str, Any]:
    return {"event": "gang", "phase": phase, "time": time}


def begin(time: float, attempt: int, step: int) -> list[dict[str, Any]]:
    """An attempt that starts at `time` and trains 10 s later."""
    return [
        gang(time, "starting"),
        gang(time + 6, "rank"),
        {"event": "start", "attempt": attempt, "step": step, "time": time + 9},
        gang(time + 10, "step"),
    ]


def progress(time: float, attempt: int, step: int) -> dict[str, Any]:
    return {"event": "progress", "attempt": attempt, "step": step, "time": time}


def beat(job: JobDir, attempt: int, rank: int, time: float) -> None:
    path = job.rank_log(attempt, rank).with_suffix(".heartbeat")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": 1, "phase": "agree", "time": time}) + "  \n")


def test_a_lost_rank_is_split_into_its_parts(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    beat(job, 1, 0, 21.0)
    beat(job, 1, 1, 20.0)  # fell silent first
    write(job, *begin(0, 1, 0), progress(20, 1, 7), gang(25, "lost"), gang(27, "ended"), *begin(28, 2, 4))
    (found,) = recoveries(job)
    parts = (found.detect_s, found.tear_down_s, found.start_s, found.load_s, found.first_step_s)
    assert parts == (5, 2, 7, 3, 1)
    assert (found.attempt, found.cause, found.total_s, found.repeated) == (2, "lost", 18, 3)
    assert "detect 5.0, tear down 2.0, start 7.0, load 3.0, first step 1.0" in describe(found)


def test_an_attempt_that_never_trained_belongs_to_the_same_way_back(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    beat(job, 1, 0, 20.0)
    broken = [gang(30, "starting"), gang(40, "lost"), gang(41, "ended")]
    write(job, *begin(0, 1, 0), gang(25, "lost"), gang(27, "ended"), *broken, *begin(50, 3, 0))
    (found,) = recoveries(job)
    assert found.total_s == 40
    assert found.start_s == 29


def test_a_stop_with_a_checkpoint_loses_nothing(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    stopped = {"event": "stopped", "attempt": 1, "step": 12, "time": 20.0}
    write(job, *begin(0, 1, 0), progress(19, 1, 10), stopped, gang(21, "ended"), *begin(22, 2, 12))
    (found,) = recoveries(job)
    assert (found.cause, found.repeated, found.detect_s, found.tear_down_s) == ("stopped", 0, None, None)
    assert found.total_s == 12


def test_a_driver_that_died_leaves_no_end(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    beat(job, 1, 0, 20.0)
    write(job, *begin(0, 1, 0), *begin(60, 2, 0))
    (found,) = recoveries(job)
    assert (found.cause, found.detect_s, found.start_s) == ("driver", None, 46)


def test_jobs_without_a_gang_have_none(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    assert recoveries(job) == []

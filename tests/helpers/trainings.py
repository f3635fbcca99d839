"""What a pre-training in a run's directory has done so far, and whether it equals another."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import read_events
from pipeline.rundir import JobDir, read_json
from pipeline.train.samplelog import read_sample_log


def pretrain_of(run: Path) -> JobDir | None:
    for file in (run / "jobs").glob("*/job.json"):
        job = read_json(file)
        if job is not None and job["stage"] == "pretrain":
            return JobDir(file.parent)
    return None


def progress(run: Path) -> list[dict[str, Any]]:
    job = pretrain_of(run)
    return [e for e in read_events(job.events)[0] if e["event"] == "progress"] if job else []


def trains(run: Path, attempt: int = 1, step: int = 1) -> bool:
    """Whether `attempt` (or a later one) has come to `step`."""
    return any(e["attempt"] >= attempt and e["step"] >= step for e in progress(run))


def reasons(run: Path) -> list[tuple[str, str]]:
    """(state, reason) of the pre-training, as the drivers reported them."""
    events = read_events(run / "events.jsonl")[0]
    return [(e["state"], e["reason"]) for e in events if e["event"] == "job" and e["stage"] == "pretrain"]


def worlds(run: Path) -> dict[int, int]:
    """attempt → its ranks."""
    job = pretrain_of(run)
    events = read_events(job.events)[0] if job else []
    return {e["attempt"]: e["world"] for e in events if e["event"] == "start"}


def wait_for(condition: Callable[[], Any], process: Any, timeout_s: float = 900) -> Any:
    """The condition's first true value; `process` must be running meanwhile."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s, process {process.poll()}")


def check_same(run: Path, alone: Path, steps: int) -> None:
    """All steps, each with the samples and (within rounding) the loss of the run `alone`."""
    job, reference = pretrain_of(run), pretrain_of(alone)
    assert job is not None
    assert reference is not None
    assert job.read_result() is not None
    log = read_sample_log(job)
    assert sorted(log) == list(range(1, steps + 1))
    assert log == read_sample_log(reference)
    losses = {e["step"]: e["loss"] for e in progress(run)}
    expected = {e["step"]: e["loss"] for e in progress(alone)}
    # Other numbers of ranks add up in another order; training makes the difference grow, to 8e-4 at step 150.
    assert losses == pytest.approx(expected, rel=5e-3)
    early = [step for step in expected if step <= 30]
    assert [losses[step] for step in early] == pytest.approx([expected[step] for step in early], rel=1e-4)

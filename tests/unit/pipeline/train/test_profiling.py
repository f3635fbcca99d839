"""Traces of chosen steps, and the share of communication: whole files, no influence, plain refusals."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.config import ProfileSettings, TrainSettings
from pipeline.errors import ConfigError
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.stages import pretrain
from pipeline.train.plan import make_plan
from pipeline.train.profiling import Profiler, communication_share, covered, write_trace
from pipeline.train.worker import run
from pipeline.train.world import World

Add = Callable[..., JobDir]
SETTINGS: dict[str, Any] = {"model": {"name": "vit_ti8"}, "duration": "12 steps", "batch": 12}


def events_of(job: JobDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(job.events)[0] if event["event"] == kind]


def test_chosen_steps_are_traced_and_nothing_else_changes(run_dir: Path, add_job: Add) -> None:
    plain, traced = add_job("plain"), add_job("traced", profile=ProfileSettings(steps=(2, 7)))
    for job in (plain, traced):
        run(run_dir, job.path.name, device="cpu")
    files = sorted(path.name for path in traced.profiles.iterdir())
    assert files == [f"step-{step:09d}-rank-00000.json.gz" for step in (2, 7)]
    with gzip.open(traced.profile(7, 0)) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"aten::linear", "aten::_fused_adamw_"} <= names
    assert [event["file"] for event in events_of(traced, "profile")] == files
    losses = [[e["loss"] for e in events_of(job, "progress")] for job in (plain, traced)]
    assert losses[0] == losses[1]
    assert not plain.profiles.exists()


def test_on_one_rank_communication_is_nothing(run_dir: Path, add_job: Add) -> None:
    asked, silent = add_job(profile=ProfileSettings(communication="5 steps")), add_job("silent")
    for job in (asked, silent):
        run(run_dir, job.path.name, device="cpu")
    assert [event["communication"] for event in events_of(asked, "progress")] == [0.0] * 12
    assert all("communication" not in event for event in events_of(silent, "progress"))


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_measures_one_step_in_so_many(tmp_path: Path, rank: int) -> None:
    world = World(rank, 2, rank, torch.device("cpu"))
    profiler = Profiler((), 3, world, lambda step: tmp_path / "trace.json.gz", lambda event: None)
    measured = []
    for step in range(1, 8):
        profiler.begin(step)
        with torch.autograd.profiler.record_function("gloo:all_reduce"):
            torch.ones(1000).square().sum()
        profiler.end(step)
        measured += [step] if "communication" in profiler.figures() else []
    assert measured == ([3, 6] if rank == 0 else [])
    assert not list(tmp_path.iterdir())


def test_a_step_that_ended_by_an_error_is_begun_again(tmp_path: Path) -> None:
    world = World(0, 1, 0, torch.device("cpu"))
    profiler = Profiler((2,), None, world, lambda step: tmp_path / "trace.json.gz", lambda event: None)
    for attempt in ("failed", "done"):
        profiler.begin(2)
        with torch.autograd.profiler.record_function(attempt):
            torch.ones(3).square()
    profiler.end(2)
    with gzip.open(tmp_path / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert "done" in names
    assert "failed" not in names


def test_what_an_error_left_running_ends_with_the_next_step(tmp_path: Path) -> None:
    """After going back, steps come that are not traced: nothing is recorded in them."""
    world = World(0, 1, 0, torch.device("cpu"))
    profiler = Profiler((2,), None, world, lambda step: tmp_path / "trace.json.gz", lambda event: None)
    profiler.begin(2)
    assert torch.autograd.profiler._is_profiler_enabled
    profiler.begin(1)
    assert not torch.autograd.profiler._is_profiler_enabled
    assert profiler.end(1) == 0.0


def test_a_trace_that_cannot_be_written_whole_is_not_there(tmp_path: Path) -> None:
    class Torn:
        def export_chrome_trace(self, path: str) -> None:
            Path(path).write_bytes(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_trace(Torn(), tmp_path / "trace.json.gz")  # type: ignore[arg-type]
    assert not (tmp_path / "trace.json.gz").exists()


def test_what_is_covered_counts_once() -> None:
    assert covered([]) == 0
    assert covered([(5, 7), (0, 4), (1, 3), (3, 6)]) == 7


def test_on_a_gpu_only_what_no_other_kernel_hides_counts() -> None:
    events = [
        ("ncclDevKernel_AllReduce_Sum_f32", True, 0, 600_000_000),
        ("ampere_sgemm", True, 100_000_000, 400_000_000),
        ("gloo:all_reduce", False, 0, 900_000_000),
    ]
    assert communication_share(events, 1.0) == pytest.approx(0.3)
    assert communication_share(events[1:], 1.0) == 0.0


def test_on_a_processor_collectives_count_and_nothing_seen_is_nothing_said() -> None:
    events = [
        ("gloo:all_reduce", False, 0, 400),
        ("gloo:all_gather", False, 200, 500),
        ("aten::mm", False, 0, 900),
    ]
    assert communication_share(events, 1e-6) == pytest.approx(0.5)
    assert communication_share(events[2:], 1e-6) is None


def test_steps_that_never_come_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"profile\.steps has 13, and the training 12 steps"):
        TrainSettings.model_validate({**SETTINGS, "profile": {"steps": [3, 13]}})
    epochs = TrainSettings.model_validate({**SETTINGS, "duration": "2 epochs", "profile": {"steps": [3, 13]}})
    assert make_plan(epochs, samples=84, world=1, seed=0).steps == 14
    with pytest.raises(ConfigError, match=r"profile\.steps has 13 in a training of 12 steps"):
        make_plan(epochs, samples=72, world=1, seed=0)


def test_profiling_is_no_part_of_what_a_job_is() -> None:
    assert "profile" in pretrain._HOW

"""`kill -9` at every moment of saving, and at random times in a row: nothing is lost, nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.weights.files import load_weights
from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.samplelog import read_sample_log
from tests.helpers.train_jobs import write_glyphs, write_train_job

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("worker_killed.py")
STEPS = 40
# Killed in the save of step 20: which step the next attempt goes on from.
MOMENTS = {
    "before anything": 10,
    "in the middle of a file": 10,
    "between tensors and index": 10,
    "before the marker": 10,
    "after the marker": 20,
    "while removing old ones": 20,
}
Jobs = dict[str, JobDir]


@pytest.fixture(scope="module")
def add_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., JobDir]:
    run = tmp_path_factory.mktemp("run")
    write_glyphs(run / "data" / "glyphs")

    def add(digest: str, steps: int, every: str) -> JobDir:
        settings = TrainSettings(
            model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
            image_size=16,
            duration=f"{steps} steps",
            batch=12,
            average=0.9,
            optimizer=OptimizerSettings(warmup="2 steps"),
            engine=EngineSettings(kind="plain"),
            checkpoint=CheckpointSettings(every=every, keep=1),
            log_every="1 steps",
        )
        view = DataView(path="data/glyphs", split="train")
        return write_train_job(run, digest, TrainJob(data=view, settings=settings, seed=1))

    return add


@pytest.fixture(scope="module")
def do_jobs(add_job: Callable[..., JobDir], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Jobs]:
    """Do jobs in one process that forks, each killed as its value says."""

    def do(cases: dict[str, Any], steps: int = STEPS, every: str = "10 steps") -> Jobs:
        jobs = {digest: add_job(digest, steps, every) for digest in cases}
        given = tmp_path_factory.mktemp("cases") / "cases.json"
        given.write_text(json.dumps(cases))
        run_dir = next(iter(jobs.values())).path.parents[1]
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), str(run_dir), str(given)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1400,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return jobs

    return do


@pytest.fixture(scope="module")
def killed(do_jobs: Callable[..., Jobs]) -> Jobs:
    return do_jobs({"undisturbed": None} | {moment.replace(" ", "-"): moment for moment in MOMENTS})


def losses(job: JobDir) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_events(job.events)[0] if e["event"] == "progress"}


def check_equal(job: JobDir, undisturbed: JobDir, steps: int = STEPS) -> None:
    assert read_sample_log(job) == read_sample_log(undisturbed)
    assert list(read_sample_log(job)) == list(range(1, steps + 1))
    assert losses(job) == losses(undisturbed)
    for name in ("weights.safetensors", "weights-last.safetensors"):
        ours, theirs = (load_weights(j.path / name)[0] for j in (job, undisturbed))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize(("moment", "resumed"), MOMENTS.items())
def test_a_kill_at_any_moment_of_saving_costs_nothing(killed: Jobs, moment: str, resumed: int) -> None:
    job = killed[moment.replace(" ", "-")]
    starts = [e["step"] for e in read_events(job.events)[0] if e["event"] == "start"]
    assert starts == [0, resumed]
    check_equal(job, killed["undisturbed"])


# Kills → steps of a training that so many cannot bring to its end: each comes within 18 of its steps.
@pytest.mark.parametrize(
    ("kills", "steps"), [(6, 110), pytest.param(50, 900, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])]
)
def test_random_kills_in_a_row_lose_and_repeat_no_sample(
    do_jobs: Callable[..., Jobs], kills: int, steps: int
) -> None:
    seed = time.time_ns() % 10**6
    digest, alone = f"random-{kills}-times-{seed}", f"undisturbed-{steps}"
    jobs = do_jobs({alone: None, digest: [kills, seed]}, steps, "4 steps")
    check_equal(jobs[digest], jobs[alone], steps)

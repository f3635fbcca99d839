"""`kill -9` at every moment of saving, and at random times in a row: nothing is lost, nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    GlyphsSource,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
    WriteSettings,
)
from pipeline.data.write import prepare
from pipeline.events import read_events
from pipeline.rundir import JobDir, RunDir, write_json
from pipeline.train.samplelog import read_sample_log

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("worker_killed.py")
STEPS = 40


def launch(run_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(run_dir), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def add_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], JobDir]:
    run = tmp_path_factory.mktemp("run")
    source = GlyphsSource(
        source="glyphs",
        classes=6,
        train_per_class=10,
        test_per_class=3,
        image_size=16,
        write=WriteSettings(shard_samples=25),
    )
    prepare(source, run / "data" / "glyphs")

    def add(digest: str) -> JobDir:
        settings = TrainSettings(
            model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
            image_size=16,
            duration=f"{STEPS} steps",
            batch=12,
            average=0.9,
            optimizer=OptimizerSettings(warmup="2 steps"),
            engine=EngineSettings(kind="plain"),
            checkpoint=CheckpointSettings(every="10 steps", keep=1),
            log_every="1 steps",
        )
        view = DataView(path="data/glyphs", split="train")
        job = TrainJob(data=view, settings=settings, seed=1).model_dump(mode="json")
        directory = RunDir(run).job(digest)
        head = {"schema": 1, "digest": digest, "name": "pretrain", "stage": "pretrain", "stage_version": 1}
        write_json(directory.job, {**head, "slice": {}, "inputs": {}, "work": job})
        return directory

    return add


@pytest.fixture(scope="module")
def undisturbed(add_job: Callable[[str], JobDir]) -> JobDir:
    job = add_job("undisturbed")
    ended = launch(job.path.parents[1], "undisturbed", "0", "0")
    assert ended.returncode == 0, ended.stderr
    return job


def losses(job: JobDir) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in read_events(job.events)[0] if e["event"] == "progress"}


def check_equal(job: JobDir, undisturbed: JobDir) -> None:
    assert read_sample_log(job) == read_sample_log(undisturbed)
    assert list(read_sample_log(job)) == list(range(1, STEPS + 1))
    assert losses(job) == losses(undisturbed)
    for name in ("weights.safetensors", "weights-last.safetensors"):
        ours, theirs = ((j.path / name).read_bytes() for j in (job, undisturbed))
        assert ours.replace(job.path.name.encode(), b"") == theirs.replace(b"undisturbed", b""), name


@pytest.mark.parametrize(
    "moment",
    [
        "before anything",
        "in the middle of a file",
        "between tensors and index",
        "before the marker",
        "after the marker",
        "while removing old ones",
    ],
)
def test_a_kill_in_any_moment_of_saving_costs_nothing(
    add_job: Callable[[str], JobDir], undisturbed: JobDir, moment: str
) -> None:
    digest = f"killed-{moment.replace(' ', '-')}"[:11].ljust(11, "x") + f"{time.time_ns() % 10**6:06d}"
    job = add_job(digest)
    ended = launch(job.path.parents[1], digest, moment)
    assert ended.returncode == 0, f"the child was not killed: {ended.stderr}"
    assert not job.result.exists()
    assert list(job.checkpoints.glob("*/COMPLETE")), "no complete checkpoint is left"
    ended = launch(job.path.parents[1], digest, "0", "0")
    assert ended.returncode == 0, ended.stderr
    resumed = [e["step"] for e in read_events(job.events)[0] if e["event"] == "start"]
    survived = moment in ("after the marker", "while removing old ones")
    assert resumed == [0, 20 if survived else 10]
    check_equal(job, undisturbed)


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_random_kills_in_a_row_lose_and_repeat_no_sample(
    add_job: Callable[[str], JobDir], undisturbed: JobDir, kills: int
) -> None:
    seed = time.time_ns() % 10**6
    job = add_job(f"random{kills:05d}")
    ended = launch(job.path.parents[1], job.path.name, str(kills), str(seed))
    assert ended.returncode == 0, f"seed {seed}: {ended.stderr}"
    check_equal(job, undisturbed)

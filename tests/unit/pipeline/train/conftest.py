"""A small prepared dataset, and jobs on it, for the tests of pipeline.train."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    EvaluateJob,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.rundir import JobDir, RunDir, write_json
from tests.helpers.train_jobs import write_glyphs

MODEL = ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64})


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads, and much slower where others use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six classes of drawings: 60 samples in train, 18 in test."""
    directory = tmp_path_factory.mktemp("glyphs")
    write_glyphs(directory)
    return directory


@pytest.fixture
def run_dir(tmp_path: Path, glyphs: Path) -> Path:
    """A run directory that sees the dataset as data/glyphs."""
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    (run / "data" / "glyphs").symlink_to(glyphs)
    return run


@pytest.fixture
def add_job(run_dir: Path) -> Callable[..., JobDir]:
    """Write job.json; keyword arguments replace parts of the settings."""

    def add(
        digest: str = "aaaa", *, start: str | None = None, validate: bool = False, **changes: Any
    ) -> JobDir:
        settings: dict[str, Any] = {
            "model": MODEL,
            "image_size": 16,
            "duration": "12 steps",
            "batch": 12,
            "optimizer": OptimizerSettings(warmup="2 steps"),
            "engine": EngineSettings(kind="plain"),
            "checkpoint": CheckpointSettings(every="4 steps"),
            "log_every": "1 steps",
        }
        test = DataView(path="data/glyphs", split="test") if validate else None
        job = TrainJob(
            data=DataView(path="data/glyphs", split="train"),
            validate_on=test,
            settings=TrainSettings(**settings | changes),
            start=start,
            seed=1,
        )
        return _write(run_dir, digest, "pretrain", job)

    return add


@pytest.fixture
def add_evaluation(run_dir: Path) -> Callable[..., JobDir]:
    def add(digest: str, weights: str) -> JobDir:
        job = EvaluateJob(
            data=DataView(path="data/glyphs", split="test"),
            weights=weights,
            image_size=16,
            augment=TrainSettings.model_fields["augment"].default,
            batch=8,
        )
        return _write(run_dir, digest, "evaluate", job)

    return add


def _write(run_dir: Path, digest: str, stage: str, job: TrainJob | EvaluateJob) -> JobDir:
    directory = RunDir(run_dir).job(digest)
    description = {
        "schema": 1,
        "digest": digest,
        "name": f"{stage}/{digest}",
        "stage": stage,
        "stage_version": 1,
    }
    write_json(directory.job, {**description, "slice": {}, "inputs": {}, "work": job.model_dump(mode="json")})
    return directory

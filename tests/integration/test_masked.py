"""Masked patch prediction by real ranks: one and two have the same losses, and a resume changes no bit."""

from __future__ import annotations

import shutil
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
from tests.helpers.train_jobs import write_glyphs, write_train_job
from tests.integration.test_worker import Ranks

STEPS = 12


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_glyphs(run / "data" / "glyphs", image_size=32)
    return run


@pytest.fixture(scope="module")
def two_ranks(run_dir: Path) -> JobDir:
    return trained(run_dir, "two", 2, micro_batch=3)


def trained(run_dir: Path, digest: str, world: int, after: JobDir | None = None, **changes: Any) -> JobDir:
    """A training to its end; `after`: from that one's checkpoint of step 5, as if it had ended there."""
    settings = TrainSettings(
        model=ModelSettings(
            name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64, "dropout": 0.0}
        ),
        objective="masked_patches",
        image_size=32,
        duration=f"{STEPS} steps",
        batch=12,
        optimizer=OptimizerSettings(warmup="2 steps", weight_decay=0.1),
        engine=EngineSettings(**changes.pop("engine", {})),
        checkpoint=CheckpointSettings(every="5 steps", keep=3),
        log_every="1 steps",
        **changes,
    )
    view = DataView(path="data/glyphs", split="train")
    test = DataView(path="data/glyphs", split="test")
    work = TrainJob(data=view, validate_on=test, settings=settings, seed=1)
    job = write_train_job(run_dir, digest, work)
    if after is not None:
        shutil.copytree(after.checkpoints / "step-000000005", job.checkpoints / "step-000000005")
    with Ranks(job, world) as ranks:
        assert ranks.wait() == [0] * world
    return job


def figures(job: JobDir, name: str) -> dict[int, float]:
    return {e["step"]: e[name] for e in read_events(job.events)[0] if e["event"] == "progress"}


def metrics(job: JobDir) -> dict[str, float]:
    result = job.read_result()
    assert result is not None
    found: dict[str, float] = result["metrics"]
    return found


def test_one_rank_and_two_ask_the_same(run_dir: Path, two_ranks: JobDir) -> None:
    one = trained(run_dir, "one", 1, engine={"kind": "plain"})
    assert list(figures(one, "loss")) == list(range(1, STEPS + 1))
    for name in ("loss", "masked_accuracy"):
        assert figures(one, name) == pytest.approx(figures(two_ranks, name), rel=1e-5), name
    for name in ("val/loss", "val/masked_accuracy"):
        assert metrics(one)[name] == pytest.approx(metrics(two_ranks)[name], rel=1e-5), name


def test_a_resume_changes_no_bit(run_dir: Path, two_ranks: JobDir) -> None:
    resumed = trained(run_dir, "resumed", 2, after=two_ranks, micro_batch=3)
    for name in ("loss", "masked_accuracy"):
        after = figures(resumed, name)
        assert min(after) == 6, "it began from nothing"
        assert after == {step: figures(two_ranks, name)[step] for step in after}, name
    whole, again = load_weights(two_ranks.weights)[0], load_weights(resumed.weights)[0]
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.slow
def test_another_stage_goes_on_from_the_checkpoint(run_dir: Path, two_ranks: JobDir) -> None:
    resumed = trained(run_dir, "stage3", 1, after=two_ranks, engine={"stage": 3})
    after = figures(resumed, "loss")
    assert min(after) == 6
    assert after == pytest.approx({step: figures(two_ranks, "loss")[step] for step in after}, rel=1e-5)

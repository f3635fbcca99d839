"""The worker in the engine's modes: stage 3 builds a network that no rank holds whole, from the seed and from
weights, rewinds and averages included; stage 0 and bf16 parameters go on from what it saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

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
from tests.helpers.train_jobs import write_train_job
from tests.integration.test_worker import Ranks

STEPS = 8


def trained(
    run_dir: Path, digest: str, world: int, engine: dict[str, Any], after: JobDir | None = None, **job: Any
) -> JobDir:
    """A training to its end; `after`: from that one's checkpoint of step 4, as if it had ended there."""
    settings = TrainSettings(
        model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
        image_size=16,
        duration=f"{STEPS} steps",
        batch=12,
        optimizer=OptimizerSettings(learning_rate=2e-3, weight_decay=0.1, decay_all=False),
        engine=EngineSettings(**engine),
        average=0.6,
        checkpoint=CheckpointSettings(every="4 steps", keep=3),
        log_every="1 steps",
    )
    view, test = (DataView(path="data/glyphs", split=split) for split in ("train", "test"))
    work = TrainJob(data=view, validate_on=test, settings=settings, seed=1, **job)
    written = write_train_job(run_dir, digest, work)
    if after is not None:
        shutil.copytree(after.checkpoints / "step-000000004", written.checkpoints / "step-000000004")
    with Ranks(written, world) as ranks:
        assert ranks.wait() == [0] * world
    return written


def losses(job: JobDir) -> list[float]:
    return [e["loss"] for e in read_events(job.events)[0] if e["event"] == "progress"]


def scored(job: JobDir) -> float:
    result = job.read_result()
    assert result is not None
    loss: float = result["metrics"]["val/loss"]
    return loss


@pytest.fixture(scope="module")
def plain(run_dir: Path) -> JobDir:
    return trained(run_dir, "plain", 1, {"kind": "plain"})


@pytest.fixture(scope="module")
def parts(run_dir: Path) -> JobDir:
    return trained(run_dir, "parts", 2, {"stage": 3})


def test_a_network_that_no_rank_holds_whole_trains_the_same(plain: JobDir, parts: JobDir) -> None:
    assert losses(parts) == pytest.approx(losses(plain), rel=1e-5)
    # Of the average, which is written over the weights.
    assert scored(parts) == pytest.approx(scored(plain), rel=1e-5)
    expected, found = (load_weights(job.weights)[0] for job in (plain, parts))
    assert {name: x.shape for name, x in expected.items()} == {name: x.shape for name, x in found.items()}


@pytest.mark.slow
def test_it_starts_from_weights(run_dir: Path, plain: JobDir) -> None:
    start = {"start": str(plain.weights.relative_to(run_dir)), "keep_head": True}
    whole = trained(run_dir, "whole-started", 1, {"kind": "plain"}, **start)
    split = trained(run_dir, "split-started", 2, {"stage": 3}, **start)
    assert losses(whole)[0] < losses(plain)[0], "it did not start from the weights"
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "engine", "bound"),
    [
        ("stage-0", {"stage": 0}, 1e-5),
        ("bf16", {"stage": 1, "precision": "bf16_params"}, 1e-2),
        ("bf16-parts", {"stage": 3, "precision": "bf16_params"}, 1e-2),
    ],
)
def test_other_modes_go_on(
    run_dir: Path, plain: JobDir, parts: JobDir, name: str, engine: dict[str, Any], bound: float
) -> None:
    resumed = trained(run_dir, name, 2, engine, after=parts)
    assert losses(resumed) == pytest.approx(losses(plain)[4:], rel=bound)
    assert scored(resumed) == pytest.approx(scored(plain), rel=bound)

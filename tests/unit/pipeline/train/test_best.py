"""The best checkpoint: which it is, that it stays, and that its weights are exported one tensor at a time."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model.weights.files import load_weights
from pipeline.config import CheckpointSettings, TrainSettings
from pipeline.config.train import ModelSettings, ValidationSettings
from pipeline.errors import StopRequested
from pipeline.events import read_events
from pipeline.rundir import JobDir, read_json
from pipeline.train import exporting, loading, parts, training
from pipeline.train.best import BestSoFar
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.loading import whole_reader
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]
# Of validations after steps 2, 4 … 12: the best is that of step 6, which nothing else would save or keep.
SCORES = {2: 0.2, 4: 0.3, 6: 0.9, 8: 0.9, 10: 0.1, 12: 0.4}
BEST = {"metric": "top1", "value": 0.9, "step": 6}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What validations say, by step; a test may change it."""
    scores = dict(SCORES)

    def validate(made: parts.Parts, step: int) -> dict[str, float]:
        return {"val/top1": scores[step], "val/loss": 1 - scores[step]}

    monkeypatch.setattr(training, "validate", validate)
    return scores


def settings(**more: Any) -> dict[str, Any]:
    checkpoint = {"keep": 1, "keep_best": "top1", **more}
    return {"validate": True, "validation": ValidationSettings(every="2 steps"), "checkpoint": checkpoint}


def steps_of(job: JobDir) -> list[int]:
    return [checkpoint.step for checkpoint in complete_checkpoints(job.checkpoints)]


def test_the_best_one_is_saved_kept_and_exported(
    run_dir: Path, add_job: Add, scored: dict[int, float]
) -> None:
    job, plain = add_job(**settings()), add_job("plain")
    result = run(run_dir, "aaaa", device="cpu")
    run(run_dir, "plain", device="cpu")
    saved = [e["step"] for e in read_events(job.events)[0] if e["event"] == "checkpoint"]
    assert saved == [2, 4, 6, 12], "an equal score is no better"
    assert steps_of(job) == [12, 6]
    assert result["outputs"]["best"] == BEST
    assert read_json(job.checkpoints / "best.json") == BEST | {"checkpoint": "step-000000006"}
    best, last = (load_weights(job.path / f"{name}.safetensors") for name in ("weights-best", "weights"))
    assert (best[2]["step"], best[2]["val/top1"], last[2]["step"]) == ("6", "0.9", "12")
    with whole_reader(complete_checkpoints(job.checkpoints)[1]) as read:
        assert all(torch.equal(best[0][name], read(name)) for name in best[0])
    assert not torch.equal(best[0]["head.weight"], last[0]["head.weight"])
    # Saving more often changes nothing of the training.
    theirs = load_weights(plain.weights)[0]
    assert all(torch.equal(last[0][name], theirs[name]) for name in theirs)


def test_it_is_the_same_after_a_resume(run_dir: Path, add_job: Add, scored: dict[int, float]) -> None:
    job = add_job(**settings())
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", device="cpu", stop_asked=stop_after(9))
    assert steps_of(job) == [9, 6]
    assert run(run_dir, "aaaa", device="cpu")["outputs"]["best"] == BEST
    assert steps_of(job) == [12, 6]
    assert load_weights(job.path / "weights-best.safetensors")[2]["step"] == "6"


def test_the_last_one_may_be_the_best(run_dir: Path, add_job: Add, scored: dict[int, float]) -> None:
    scored[12] = 0.95
    job = add_job(**settings(keep_best="loss"))
    best = run(run_dir, "aaaa", device="cpu")["outputs"]["best"]
    assert (best["metric"], best["step"]) == ("loss", 12)
    ours, theirs = (load_weights(job.path / f"{n}.safetensors")[0] for n in ("weights-best", "weights"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_one_that_is_lost_is_told(run_dir: Path, add_job: Add, scored: dict[int, float]) -> None:
    job = add_job(**settings())
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", device="cpu", stop_asked=stop_after(9))
    shutil.rmtree(job.checkpoints / "step-000000006")
    run(run_dir, "aaaa", device="cpu")
    warnings = [e["message"] for e in read_events(job.events)[0] if e["event"] == "warning"]
    assert warnings == ["the best checkpoint, of step 6, cannot be exported: it is not there"]
    assert not (job.path / "weights-best.safetensors").exists()


def test_a_remote_store_keeps_it_too(
    run_dir: Path, add_job: Add, scored: dict[int, float], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    job = add_job(**settings(remote=str(store)))
    with pytest.raises(StopRequested):  # waits for its copy
        run(run_dir, "aaaa", device="cpu", stop_asked=stop_after(6))
    assert (job.checkpoints / "step-000000006" / "COMPLETE").exists()
    run(run_dir, "aaaa", device="cpu")
    kept = {json.loads(path.read_text())["step"] for path in store.glob("aaaa/*/COMPLETE")}
    assert kept == {6, 12}


def test_going_back_forgets_what_came_later() -> None:
    best = BestSoFar("loss", None)
    best.judge(2, {"val/loss": 3.0})
    assert best.found_at(2)
    best.judge(4, {"val/loss": 4.0})
    assert not best.found_at(4)
    best.go_back(None)
    assert best.record() is None


def test_an_export_holds_one_parameter_at_a_time(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    @contextmanager
    def watched(*arguments: Any) -> Iterator[Callable[[str], torch.Tensor]]:
        with loading.whole_reader(*arguments) as read:

            def read_watched(name: str) -> torch.Tensor:
                assert all(tensor() is None for tensor in alive), f"another is held while {name} is read"
                whole = read(name)
                alive.append(weakref.ref(whole))
                return whole

            yield read_watched

    monkeypatch.setattr(exporting, "whole_reader", watched)
    job = add_job()
    run(run_dir, "aaaa", device="cpu")
    assert len(alive) == len(load_weights(job.weights)[0]) > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": ValidationSettings()}, "no effect without validations on the way"),
        ({"average": 0.9}, "score the weights of the step, not their average"),
        ({"objective": "masked_patches"}, "reads no label; use loss"),
    ],
)
def test_what_could_not_act_is_refused(changes: dict[str, Any], message: str) -> None:
    fine: dict[str, Any] = {
        "model": ModelSettings(name="vit_ti8"),
        "duration": "12 steps",
        "batch": 12,
        "validation": ValidationSettings(every="2 steps"),
        "checkpoint": CheckpointSettings(keep_best="top1"),
    }
    TrainSettings(**fine)
    with pytest.raises(ValidationError, match=message):
        TrainSettings(**fine | changes)

"""Validation on the way: right, on schedule, and without a trace in the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import config_from_dict
from model.interface import ImageModel
from model.weights.files import load_into, load_weights
from model.zoo import build
from pipeline.config import AugmentSettings, DataView
from pipeline.config.train import ValidationSettings
from pipeline.data.loader import EvalLoader
from pipeline.data.view import open_view
from pipeline.errors import ConfigError, StopRequested
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train import validating
from pipeline.train.loop import normalise
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run
from pipeline.transfer import knn, ridge

Add = Callable[..., JobDir]
ALL = ValidationSettings(every="3 steps", few_shot=(1, 5), knn=3, bank=50)


def events(job: JobDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(job.events)[0] if event["event"] == kind]


def features(module: ImageModel, view: Any) -> tuple[torch.Tensor, torch.Tensor]:
    augment = AugmentSettings()
    with EvalLoader(view, batch=7, image_size=16, augment=augment, threads=1, rank=0, world=1) as loader:
        rows = [(normalise(b.images), b.labels, b.weights > 0, b.ids) for b in loader]
    with torch.no_grad():
        found = torch.cat([module.features(images)[real] for images, _, real, _ in rows])
    order = torch.cat([ids[real] for *_, real, ids in rows]).argsort()
    return found[order], torch.cat([labels[real] for _, labels, real, _ in rows])[order]


def test_a_training_is_the_same_with_and_without_validation(run_dir: Path, add_job: Add) -> None:
    alone, watched = add_job("alone"), add_job("watched", validate=True, validation=ALL)
    run(run_dir, "alone", device="cpu")
    result = run(run_dir, "watched", device="cpu")
    losses = [[event["loss"] for event in events(job, "progress")] for job in (alone, watched)]
    assert losses[0] == losses[1]
    assert read_sample_log(alone) == read_sample_log(watched)
    ours, theirs = (load_weights(job.weights)[0] for job in (alone, watched))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    seen = events(watched, "validate")
    assert [event["step"] for event in seen] == [3, 6, 9, 12]
    assert all(event["n"] == 18 for event in seen)
    assert {name for name in result["metrics"] if name.startswith("val/")} == {
        *("val/top1", "val/loss", "val/few_shot_1", "val/few_shot_5", "val/knn_top1")
    }
    assert seen[0]["loss"] != seen[1]["loss"]


def test_features_are_those_of_the_exported_network(run_dir: Path, add_job: Add) -> None:
    job = add_job(validate=True, validation=ALL)
    found = run(run_dir, "aaaa", device="cpu")["metrics"]
    state, config, _ = load_weights(job.weights)
    module = build(config_from_dict(config), initialise=True)
    load_into(module, state)
    module.eval()
    train = DataView(path="data/glyphs", split="train", samples=50)
    bank = features(module, open_view(train, run_dir))
    asked = features(module, open_view(DataView(path="data/glyphs", split="test"), run_dir))
    for shots in (1, 5):
        rates = ridge.few_shot(*bank, *asked, 6, shots=shots)
        assert found[f"val/few_shot_{shots}"] == pytest.approx(sum(rates) / 3)
    right = knn.votes(*bank, asked[0], 6, neighbours=3).argmax(1) == asked[1]
    assert found["val/knn_top1"] == pytest.approx(right.double().mean().item())


def test_a_stop_during_validation_saves_the_step(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, job = add_job("whole"), add_job(validate=True, validation=ValidationSettings(every="5 steps"))
    run(run_dir, "whole", device="cpu")
    inside = False
    real = validating.score

    def score(*args: Any) -> Any:
        nonlocal inside
        inside = True
        return real(*args)

    monkeypatch.setattr(validating, "score", score)
    with pytest.raises(StopRequested, match="step 5 of 12 is done and saved"):
        run(run_dir, "aaaa", stop_asked=lambda: inside, device="cpu")
    assert (job.checkpoints / "step-000000005" / "COMPLETE").exists()
    monkeypatch.undo()
    run(run_dir, "aaaa", device="cpu")
    ours, theirs = ({e["step"]: e["loss"] for e in events(j, "progress")} for j in (job, whole))
    assert ours == theirs


def test_what_could_not_act_is_refused(run_dir: Path, add_job: Add) -> None:
    with pytest.raises(ValueError, match="bank has no effect"):
        ValidationSettings(bank=5)
    add_job(validation=ValidationSettings(every="2 steps"))
    with pytest.raises(ConfigError, match="no data to validate on"):
        run(run_dir, "aaaa", device="cpu")

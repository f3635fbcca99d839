"""Masked patch prediction through the worker: what is hidden, what is reported, what is exported and used.

Several ranks are in tests/integration/test_masked.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.config import config_from_dict
from model.masked import MaskedPatchModel
from model.weights.files import load_into, load_weights
from model.zoo import build, model_config
from pipeline.config import AugmentSettings, MaskedPatchSettings, ModelSettings, TrainSettings
from pipeline.errors import ConfigError, StopRequested
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.objective import MaskedPatches, Part, make_objective, masked_model
from pipeline.train.optim import layer_of
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]
TINY = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}
MASKED: dict[str, Any] = {"objective": "masked_patches"}


def progress(job: JobDir) -> dict[int, dict[str, Any]]:
    return {e["step"]: e for e in read_events(job.events)[0] if e["event"] == "progress"}


class Recorder:
    """Stands where the engine does; keeps the corruption that it was given."""

    def __init__(self, module: MaskedPatchModel) -> None:
        self.module = module
        self.corruptions: list[Any] = []

    def forward(self, images: torch.Tensor, corruption: Any) -> torch.Tensor:
        self.corruptions.append(corruption)
        output: torch.Tensor = self.module(images, corruption)
        return output


def tiny_objective(seed: int = 1, **settings: Any) -> tuple[MaskedPatches, Recorder]:
    chosen = MaskedPatchSettings(**settings)
    config = model_config("vit_ti8", num_classes=1, image_size=32, **TINY)  # type: ignore[arg-type]
    module = masked_model(config, chosen)
    module.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(module.prediction_head.weight)
    return MaskedPatches(chosen, module, seed), Recorder(module)


def hidden(ids: list[int], *, step: int = 3, seed: int = 1, **settings: Any) -> torch.Tensor:
    """Which patches are masked or swapped, (n, 2, N)."""
    objective, engine = tiny_objective(seed, **settings)
    part = Part(step, torch.ones(len(ids)), torch.tensor(ids))
    labels = torch.zeros(len(ids), dtype=torch.int64)
    objective.loss_sum(engine, torch.zeros(len(ids), 3, 32, 32), labels, part)  # type: ignore[arg-type]
    [corruption] = engine.corruptions
    return torch.stack([corruption.masked_BN.long(), corruption.source_BN], dim=1)


def test_what_is_hidden_depends_on_seed_step_and_sample_alone() -> None:
    whole = hidden([5, 9, 2, 40])
    assert torch.equal(torch.cat([hidden([5, 9]), hidden([2, 40])]), whole)
    assert torch.equal(hidden([40, 5]), whole[[3, 0]])
    assert not torch.equal(hidden([5, 9, 2, 40], step=4), whole)
    assert not torch.equal(hidden([5, 9, 2, 40], seed=2), whole)
    assert not torch.equal(whole[0], whole[1])


def test_the_shares_are_those_of_the_settings() -> None:
    masked = hidden(list(range(100)), corrupted=0.25, masked=1.0, swapped=0.0)[:, 0]
    assert (masked.sum(dim=1) == 4).all(), "a quarter of 16 patches"
    swapped = hidden(list(range(100)), corrupted=1.0, masked=0.0, swapped=1.0)
    assert not swapped[:, 0].any()
    assert (swapped[:, 1] != torch.arange(16)).all()


class Alone:
    """A world of one rank."""

    def sums(self, values: list[float]) -> list[float]:
        return values


def test_accuracy_is_a_mean_over_samples_that_count() -> None:
    objective, engine = tiny_objective()
    torch.nn.init.zeros_(engine.module.prediction_head.weight)
    with torch.no_grad():
        engine.module.prediction_head.bias[0] = 1.0  # black
    images = torch.stack([torch.full((3, 32, 32), value) for value in (-1.0, 1.0, -1.0)])
    part = Part(0, torch.tensor([1.0, 1.0, 0.0]), torch.arange(3))
    objective.loss_sum(engine, images, torch.zeros(3), part)  # type: ignore[arg-type]
    assert objective.figures(Alone()) == {"masked_accuracy": 0.5}  # type: ignore[arg-type]
    assert objective.figures(Alone()) == {}, "each report begins anew"  # type: ignore[arg-type]
    judged = objective.judge(engine.forward, images, part.ids)
    assert judged["masked_accuracy"].tolist() == [1.0, 0.0, 1.0]


def test_a_masked_training_reports_and_learns(run_dir: Path, add_job: Add) -> None:
    job = add_job(validate=True, duration="60 steps", **MASKED)
    result = run(run_dir, "aaaa", device="cpu")
    metrics, events = result["metrics"], progress(job)
    assert {"train/masked_accuracy", "val/masked_accuracy", "val/loss"} <= set(metrics)
    assert "val/top1" not in metrics
    assert events[60]["loss"] < 0.8 * events[1]["loss"]
    # A head of zeros says black everywhere, which the ground of many drawings is: not 0 from the start.
    assert 0 < events[1]["masked_accuracy"] < 1
    assert metrics["train/masked_accuracy"] == events[60]["masked_accuracy"]
    [validated] = [e for e in read_events(job.events)[0] if e["event"] == "validate"]
    assert (validated["n"], validated["masked_accuracy"]) == (18, metrics["val/masked_accuracy"])


def test_stopped_and_continued_equals_never_stopped(run_dir: Path, add_job: Add) -> None:
    whole, cut = add_job("whole", **MASKED), add_job("cut", **MASKED)
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested, match="step 6 of 12"):
        run(run_dir, "cut", stop_asked=stop_after(6), device="cpu")
    run(run_dir, "cut", device="cpu")
    for name in ("loss", "masked_accuracy"):
        assert [e[name] for e in progress(cut).values()] == [e[name] for e in progress(whole).values()]
    for name, value in load_weights(whole.weights)[0].items():
        assert torch.equal(load_weights(cut.weights)[0][name], value), name


def test_fine_tuning_starts_from_all_of_the_backbone(run_dir: Path, add_job: Add) -> None:
    before = add_job("before", **MASKED, average=0.9)
    run(run_dir, "before", device="cpu")
    state, plain, header = load_weights(before.weights)
    assert header["objective"] == "masked_patches"
    assert header["classes"] == "[]"
    load_into(build(config_from_dict(plain)), state)  # every key, or it raises
    assert not any("mask_token" in name or "prediction_head" in name for name in state)
    # A training of no consequence shows what it started from.
    still = {"learning_rate": 1e-12, "clip_norm": 1.0}
    after = add_job(
        "after",
        start="jobs/before/weights.safetensors",
        validate=True,
        duration="1 steps",
        optimizer=TrainSettings.model_fields["optimizer"].default.model_copy(update=still),
    )
    assert "val/top1" in run(run_dir, "after", device="cpu")["metrics"]
    tuned, tuned_plain, _ = load_weights(after.weights)
    assert tuned_plain["num_classes"] == 6
    for name in state.keys() - {"head.weight", "head.bias"}:
        assert torch.allclose(tuned[name], state[name], atol=1e-9), name


@pytest.mark.parametrize("target", ["thumbnail", "pixels"])
def test_the_other_targets_train_too(run_dir: Path, add_job: Add, target: str) -> None:
    add_job(
        validate=True,
        duration="4 steps",
        masked_patches=MaskedPatchSettings(target=target),
        **MASKED,
    )
    metrics = run(run_dir, "aaaa", device="cpu")["metrics"]
    assert ("val/masked_accuracy" in metrics) == (target == "thumbnail"), "pixels have no classes"
    assert metrics["val/loss"] > 0


def test_layers_of_the_masked_model_are_those_of_its_backbone() -> None:
    assert layer_of("backbone.blocks.1.mlp.up.weight", 9) == 2
    assert layer_of("backbone.norm.weight", 9) == layer_of("prediction_head.bias", 9) == 9
    assert layer_of("mask_token", 9) == layer_of("backbone.embedding.patch.weight", 9) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "sigmoid"}, "loss set with objective masked_patches"),
        ({"augment": AugmentSettings(mixup=0.2)}, "augment.mixup set"),
        ({"model": ModelSettings(name="vit_ti8", representation=True)}, "model.representation set"),
        ({"model": ModelSettings(name="vit_ti8", options={"head_bias": -1.0})}, "head_bias set"),
        ({"objective": "classification", "masked_patches": {"corrupted": 0.1}}, "has no effect without"),
        ({"masked_patches": {"masked": 0.8, "swapped": 0.3}}, "more than all"),
    ],
)
def test_settings_that_cannot_act_are_refused(changes: dict[str, Any], message: str) -> None:
    settings = {"model": {"name": "vit_ti8"}, "duration": "1 steps", "batch": 1, **MASKED, **changes}
    with pytest.raises(ValueError, match=message):
        TrainSettings.model_validate(settings)


def test_networks_that_cannot_be_trained_so_are_refused(run_dir: Path, add_job: Add) -> None:
    add_job("resnet", model=ModelSettings(name="bit_r50x1"), **MASKED)
    with pytest.raises(ConfigError, match="has no patches to hide"):
        run(run_dir, "resnet", device="cpu")
    config = model_config("vit_ti8", num_classes=1, image_size=16, **TINY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"corrupted 0.1 of 4 patches is none of them; set it to 0.25"):
        masked_model(config, MaskedPatchSettings(corrupted=0.1))
    with pytest.raises(ValueError, match="would leave attention pooling"):
        masked_model(model_config("vit_ti8", num_classes=1, image_size=16, pool="map"), MaskedPatchSettings())


def test_a_classifier_gets_the_objective_of_the_labels() -> None:
    module = build(model_config("vit_ti8", num_classes=2, image_size=16, **TINY))  # type: ignore[arg-type]
    settings = TrainSettings(model=ModelSettings(name="vit_ti8"), duration="1 steps", batch=1)
    assert make_objective(settings, module, 1).kept({"x": torch.ones(1)}).keys() == {"x"}

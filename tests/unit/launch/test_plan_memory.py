"""Predicted bytes against counted ones: what autograd keeps, a checkpoint holds, a process takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from launch.bench.ranks import run_job, write_drawings
from launch.bench.train import planned_mib
from launch.plan_disk import checkpoint_bytes
from launch.plan_memory import Load, activation_bytes, memory_of, moments_of
from model.flops import count_parameters
from model.zoo import create_model, model_config
from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    GlyphsSource,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.data.write import prepare
from pipeline.rundir import RunDir, write_json
from pipeline.train.worker import run

MODEL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}


def kept(name: str, images: int, size: int, checkpointing: bool, **options: Any) -> int:
    """Bytes of the distinct tensors that autograd keeps for a backward pass, weights excluded."""
    model = create_model(name, num_classes=10, image_size=size, **options)
    model.set_activation_checkpointing(checkpointing)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(torch.zeros(images, 3, size, size))
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


@pytest.mark.parametrize(
    "name, checkpointing, tolerance, options",
    [
        ("vit_ti16", False, 0.02, {}),
        ("vit_ti16", False, 0.03, {"pool": "gap"}),
        pytest.param("bit_r50x1", False, 0.05, {}, marks=pytest.mark.slow),
        pytest.param("bit_r50x1", True, 0.10, {}, marks=pytest.mark.slow),
        ("r26_vit_s32", False, 0.25, {"depth": 2}),
        ("r_vit_ti16", False, 0.10, {"depth": 2}),
    ],
)
def test_activations_are_those_that_autograd_keeps(
    name: str, checkpointing: bool, tolerance: float, options: dict[str, Any]
) -> None:
    # The difference between two batches leaves out what depends on the weights alone.
    found = kept(name, 3, 64, checkpointing, **options) - kept(name, 1, 64, checkpointing, **options)
    config = model_config(name, num_classes=10, image_size=64, **options)
    predicted, _ = activation_bytes(config, 4, 2, checkpointing=checkpointing)
    assert predicted == pytest.approx(found, rel=tolerance)


def test_checkpointing_keeps_block_inputs_and_one_block() -> None:
    config = model_config("vit_ti16", num_classes=10, image_size=64)
    predicted, _ = activation_bytes(config, 4, 2, checkpointing=True)
    inputs = kept("vit_ti16", 3, 64, True) - kept("vit_ti16", 1, 64, True)
    whole, _ = activation_bytes(config, 4, 2)
    assert inputs < predicted < inputs + whole / 10


@pytest.mark.parametrize("precision", ["bf16_params", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_rounded_parameters_take_half_and_nothing_else_changes(precision: str, stage: int) -> None:
    config = model_config("vit_b16", num_classes=10)
    count = count_parameters(config)
    whole, rounded = (
        memory_of(config, count, Load(64, 64, 4, EngineSettings.model_validate(engine), 2, gpu=True))
        for engine in ({"stage": stage, "precision": "bf16"}, {"stage": stage, "precision": precision})
    )
    assert rounded.parameters == whole.parameters // 2
    assert rounded.gradients == whole.gradients
    assert rounded.masters == whole.masters
    assert rounded.buffers < whole.buffers  # autocast keeps a second copy


def test_stage_0_splits_nothing_and_its_masters_are_the_parameters() -> None:
    config = model_config("vit_b16", num_classes=10)
    count = count_parameters(config)
    memory = memory_of(config, count, Load(64, 64, 4, EngineSettings(stage=0), 2, gpu=True))
    states = (memory.parameters, memory.gradients, memory.masters, memory.moments)
    assert states == (4 * count, 4 * count, 0, 8 * count)


def test_states_follow_the_table_of_the_stages() -> None:
    config = model_config("vit_ti16", num_classes=10)
    count = count_parameters(config)

    def states(stage: int, world: int, kind: str = "zero") -> tuple[int, ...]:
        engine = EngineSettings.model_validate({"kind": kind, "stage": stage})
        memory = memory_of(config, count, Load(64, 64, world, engine, 2, gpu=True))
        return memory.parameters, memory.gradients, memory.masters, memory.moments

    whole, split = 4 * count, -(-4 * count // 8)
    assert states(1, 1, "plain") == (whole, whole, 0, 2 * whole)
    assert states(1, 8) == (whole, whole, split, 2 * split)
    assert states(2, 8) == (whole, split, split, 2 * split)
    assert states(3, 8) == (split, split, split, 2 * split)


def test_a_processor_keeps_the_copy_that_is_saved_and_a_gpu_does_not() -> None:
    config = model_config("vit_ti16", num_classes=10)
    count = count_parameters(config)

    def saving(kind: str, world: int, moments: int, gpu: bool) -> int:
        engine = EngineSettings.model_validate({"kind": kind})
        return memory_of(config, count, Load(64, 64, world, engine, moments, gpu=gpu)).saving

    assert saving("plain", 1, 2, gpu=False) == 12 * count == checkpoint_bytes(count, 2)
    assert saving("zero", 4, 3, gpu=False) == 4 * -(-4 * count // 4)
    assert saving("zero", 4, 3, gpu=True) == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, TrainJob]:
    """A tiny real training with two checkpoints."""
    place = tmp_path_factory.mktemp("run")
    source = GlyphsSource(source="glyphs", classes=4, train_per_class=6, test_per_class=1, image_size=16)
    prepare(source, place / "data")
    job = TrainJob(
        data=DataView(path="data", split="train"),
        settings=TrainSettings(
            model=ModelSettings(name="vit_ti8", options=MODEL),
            image_size=16,
            duration="2 steps",
            batch=6,
            engine=EngineSettings(kind="plain", self_test=False),
            checkpoint=CheckpointSettings(every="1 steps", keep=2),
            average=0.99,
        ),
        seed=0,
    )
    head = {"schema": 1, "digest": "aaaa", "name": "pretrain", "stage": "pretrain", "stage_version": 1}
    run_dir = RunDir(place)
    work = {"slice": {}, "inputs": {}, "work": job.model_dump(mode="json")}
    write_json(run_dir.job("aaaa").job, {**head, **work})
    run(place, "aaaa", device="cpu")
    return run_dir, job


def test_checkpoints_hold_exactly_the_bytes_of_the_plan(trained: tuple[RunDir, TrainJob]) -> None:
    run_dir, job = trained
    config = model_config("vit_ti8", num_classes=4, image_size=16, **MODEL)
    predicted = checkpoint_bytes(count_parameters(config), moments_of(job.settings))
    files = sorted(run_dir.job("aaaa").checkpoints.glob("step-*/*.safetensors"))
    assert len(files) == job.settings.checkpoint.keep
    for file in files:
        data = file.read_bytes()
        header = int.from_bytes(data[:8], "little")
        assert len(data) - 8 - header == predicted
        assert json.loads(data[8 : 8 + header])


def test_momentum_alone_takes_one_tensor_less() -> None:
    def moments(average: float | None = None, **optimizer: Any) -> int:
        model, optimizer_settings = ModelSettings(name="vit_ti16"), OptimizerSettings(**optimizer)
        return moments_of(
            TrainSettings(
                model=model, duration="1 steps", batch=1, optimizer=optimizer_settings, average=average
            )
        )

    assert [moments(name="sgd"), moments(name="sgd", momentum=0)] == [1, 0]
    assert [moments(), moments(average=0.9999)] == [2, 3]
    assert checkpoint_bytes(10, 1) == 80


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["plain", 1, 2, 3])
def test_a_training_on_processors_peaks_where_the_plan_says(tmp_path: Path, stage: int | str) -> None:
    """With a save on the way; two ranks but for the plain engine."""
    ranks = 1 if stage == "plain" else 2
    engine = {"kind": "plain"} if stage == "plain" else {"stage": stage}
    data = write_drawings(tmp_path, 96)
    settings = TrainSettings(
        model=ModelSettings(name="vit_s16"),
        image_size=96,
        duration="6 steps",
        batch=16 * ranks,
        engine=EngineSettings.model_validate({"self_test": False, **engine}),
        checkpoint=CheckpointSettings(every="2 steps", keep=1),
        threads=1,
        log_every="1 steps",
    )
    events = run_job(tmp_path, "peak", data, settings, ranks, "cpu")
    peak = max(event["memory_mib"] for event in events if event["event"] == "progress")
    assert peak == pytest.approx(planned_mib(settings, 10, ranks, False), rel=0.10)

"""A training job on one rank, from its settings to its weights: what stands before and after the loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from model.flops import training_exaflops
from model.interface import ImageModel
from pipeline.config import TrainJob
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.view import View, open_view
from pipeline.errors import ConfigError
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.engine import create_engine
from pipeline.train.exporting import export_weights
from pipeline.train.fragments import shapes
from pipeline.train.health import self_test
from pipeline.train.heartbeat import Heartbeat
from pipeline.train.interface import Engine
from pipeline.train.loop import Plan, Training, train
from pipeline.train.plan import make_plan
from pipeline.train.samplelog import SampleLog
from pipeline.train.saving import Saver
from pipeline.train.score import score
from pipeline.train.starting import build_model, resume

Result = tuple[dict[str, float], dict[str, Any]]


@dataclass(frozen=True)
class _Parts:
    """What one attempt at a training is made of."""

    job: TrainJob
    attempt: Attempt
    view: View
    plan: Plan
    engine: Engine
    average: PolyakAverage | None
    beat: Heartbeat
    shapes: Mapping[str, tuple[int, ...]]
    began: float  # time.monotonic()


def run_training(job: TrainJob, attempt: Attempt) -> Result:
    """Train, validate and export; metrics and outputs for result.json, the same on all ranks."""
    settings, world = job.settings, attempt.world
    began = time.monotonic()
    view = open_view(job.data, attempt.run)
    if view.multi_label and settings.loss == "softmax":
        raise ConfigError(
            "samples with several labels, and loss softmax",
            "loss sigmoid, which asks about each class for itself",
            "set pretrain.loss=sigmoid",
        )
    plan = make_plan(settings, samples=view.samples, world=world.size, seed=job.seed)
    if settings.engine.self_test:
        self_test(settings.optimizer, settings.engine, world, plan.shape.accumulation)

    module = build_model(job, view, attempt)
    model_config, whole_shapes = module.config.to_dict(), shapes(module)
    engine = create_engine(module, settings.optimizer, settings.engine, plan.shape, world)
    average = None if settings.average is None else PolyakAverage(engine.fragments(), settings.average)
    log = attempt.job.rank_log(attempt.generation, world.rank)
    with (
        closing(engine),
        Heartbeat(log, world.rank, world.size, settings.health.stall_s, attempt.warn) as beat,
    ):
        checkpoint = resume(engine, average, attempt, whole_shapes)
        parts = _Parts(job, attempt, view, plan, engine, average, beat, whole_shapes, began)
        last, seconds = _train(parts, checkpoint)
        if average is not None:
            average.become_masters()
            engine.loaded(engine.updates)
        metrics = _metrics(plan, module, last, seconds) | _validate(parts)
        beat("export", plan.steps)
        export_weights(job, attempt, view, module, model_config)
    attempt.report({"event": "done", "step": plan.steps})
    outputs = {
        "weights": attempt.relative(attempt.job.weights),
        "steps": plan.steps,
        "train_fingerprint": view.fingerprint,
    }
    return metrics, outputs


def _train(parts: _Parts, checkpoint: Checkpoint | None) -> tuple[dict[str, float], float]:
    """The loop, from the checkpoint on; figures of the last report, and seconds over all attempts."""
    step = checkpoint.step if checkpoint else 0
    with closing(_loader(parts, step)) as loader:
        if checkpoint is not None:
            loader.check_state(checkpoint.record["loader"])
        run = _training(parts, loader, checkpoint)
        parts.attempt.report(_start_event(parts, step))
        try:
            train(run, step)
        finally:
            if run.sample_log is not None:
                run.sample_log.close()
        return run.last, float(run.record(parts.plan.steps)["seconds"])


def _loader(parts: _Parts, step: int) -> TrainLoader:
    settings, world = parts.job.settings, parts.attempt.world
    return TrainLoader(
        parts.view,
        batch=settings.batch,
        image_size=settings.image_size,
        augment=settings.augment,
        order=settings.order,
        seed=parts.job.seed,
        threads=settings.threads,
        bad_samples=settings.bad_samples,
        rank=world.rank,
        world=world.size,
        first_step=step,
        steps=parts.plan.steps,
    )


def _training(parts: _Parts, loader: TrainLoader, checkpoint: Checkpoint | None) -> Training:
    """What the loop works with."""
    settings, attempt, engine = parts.job.settings, parts.attempt, parts.engine
    world = attempt.world
    earlier_s = float(checkpoint.record["seconds"]) if checkpoint else 0.0

    def record(done: int) -> dict[str, Any]:
        return {
            "position": done * settings.batch,
            "updates": engine.updates,
            "loader": loader.state(done),
            "digest": attempt.digest,
            "generation": attempt.generation,
            "world": world.size,
            "engine": settings.engine.model_dump(include={"kind", "stage", "precision"}),
            "shapes": {name: list(shape) for name, shape in parts.shapes.items()},
            "seconds": earlier_s + time.monotonic() - parts.began,
            "figures": run.last,
        }

    log = attempt.job.samples(attempt.generation, world.rank)
    keep = settings.checkpoint.keep
    run = Training(
        plan=parts.plan,
        settings=settings,
        engine=engine,
        batches=iter(loader),
        saver=Saver(attempt.job.checkpoints, world, keep, attempt.check_fence, attempt.report),
        world=world,
        report=attempt.report,
        stop_asked=attempt.stop,
        sample_log=SampleLog(log) if settings.log_samples else None,
        average=parts.average,
        beat=parts.beat,
        record=record,
        last=dict(checkpoint.record["figures"]) if checkpoint else {},
    )
    return run


def _start_event(parts: _Parts, step: int) -> dict[str, Any]:
    shape, engine = parts.plan.shape, parts.job.settings.engine
    return {
        "event": "start",
        "step": step,
        "steps": parts.plan.steps,
        "world": parts.attempt.world.size,
        "batch": shape.batch,
        "micro_batch": shape.micro_batch,
        "accumulation": shape.accumulation,
        "images_per_epoch": parts.plan.samples,
        "precision": engine.precision,
        "engine": engine.kind,
    }


def _metrics(plan: Plan, module: ImageModel, last: Mapping[str, float], seconds: float) -> dict[str, float]:
    names = ("loss", "grad_norm", "lr", "images_per_s")
    images = plan.steps * plan.shape.batch
    return {f"train/{name}": float(last[name]) for name in names if name in last} | {
        "cost/images_seen": float(images),
        "cost/exaflops": training_exaflops(module.config, images),
        "cost/seconds": seconds,
    }


def _validate(parts: _Parts) -> dict[str, float]:
    """Scores on `validate_on`, after the last step."""
    job, attempt, plan, engine = parts.job, parts.attempt, parts.plan, parts.engine
    if job.validate_on is None:
        return {}
    view = open_view(job.validate_on, attempt.run)
    loader = EvalLoader(
        view,
        batch=attempt.world.size * plan.shape.micro_batch,
        image_size=job.settings.image_size,
        augment=job.settings.augment,
        threads=job.settings.threads,
        rank=attempt.world.rank,
        world=attempt.world.size,
    )
    engine.training(False)

    def forward(images: torch.Tensor) -> torch.Tensor:
        parts.beat("validate", plan.steps)
        return engine.forward(images)

    try:
        scores = score(forward, loader, attempt.world, view.samples, attempt.stop)
    finally:
        loader.close()
    attempt.report(
        {"event": "validate", "step": plan.steps, "top1": scores.top1, "loss": scores.nll, "n": scores.n}
    )
    return {"val/top1": scores.top1, "val/loss": scores.nll}

"""A training job on one rank, from its settings to its weights.

The ways to start, in order: the job's own newest checkpoint; a weights file (`start`), adapted to the
new classes and image size; from scratch, with weights drawn from the seed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import torch

from model.config import config_from_dict
from model.flops import training_exaflops
from model.interface import ImageModel
from model.weights.adapt import adapt
from model.weights.files import load_into, load_weights, save_weights
from model.zoo import create_model
from pipeline.config import TrainJob
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.view import View, open_view
from pipeline.errors import ConfigError
from pipeline.train.attempt import Attempt
from pipeline.train.checkpoint import Checkpoint, complete_checkpoints, find_checkpoint, sweep
from pipeline.train.engine import create_engine
from pipeline.train.fragments import shapes
from pipeline.train.health import self_test
from pipeline.train.interface import Engine
from pipeline.train.loading import load_fragments, whole_tensors
from pipeline.train.loop import Plan, Training, train
from pipeline.train.plan import make_plan
from pipeline.train.samplelog import SampleLog
from pipeline.train.saving import Saver
from pipeline.train.score import score

Result = tuple[dict[str, float], dict[str, Any]]


def run_training(job: TrainJob, attempt: Attempt) -> Result:
    """Train, validate and export; metrics and outputs for result.json, the same on all ranks."""
    settings, world = job.settings, attempt.world
    began = time.monotonic()
    view = open_view(job.data, attempt.run)
    plan = make_plan(settings, samples=view.samples, world=world.size, seed=job.seed)
    if settings.engine.self_test:
        self_test(settings.optimizer, settings.engine, world, plan.shape.accumulation)

    module = build_model(job, view, attempt)
    model_config = module.config.to_dict()
    whole_shapes = shapes(module)
    engine = create_engine(module, settings.optimizer, settings.engine, plan.shape, world)
    try:
        checkpoint = resume(engine, attempt, whole_shapes)
        run, loader = _prepare(job, attempt, view, plan, engine, checkpoint, began, whole_shapes)
        try:
            train(run, checkpoint.step if checkpoint else 0)
        finally:
            loader.close()
            if run.sample_log is not None:
                run.sample_log.close()
        metrics = _metrics(job, plan, run, module) | _validate(job, attempt, plan, engine)
        _export(job, attempt, view, module, model_config)
    finally:
        engine.close()
    attempt.report({"event": "done", "step": plan.steps})
    outputs = {
        "weights": attempt.relative(attempt.job.weights),
        "steps": plan.steps,
        "train_fingerprint": view.fingerprint,
    }
    return metrics, outputs


def build_model(job: TrainJob, view: View, attempt: Attempt) -> ImageModel:
    """The network with its starting weights: from `start`, or drawn from the seed, on the CPU."""
    settings = job.settings
    try:
        module = create_model(
            settings.model.name,
            num_classes=view.num_classes,
            image_size=settings.image_size,
            representation=settings.model.representation,
            generator=torch.Generator().manual_seed(job.seed),
            **settings.model.options,
        )
        if job.start is not None:
            state, old_config, _ = load_weights(attempt.run / job.start)
            load_into(module, adapt(state, config_from_dict(old_config), module.config, new_head=True))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error),
            "a model of the zoo, and weights that fit it",
            "correct model or start in the configuration",
        ) from error
    return module


def resume(
    engine: Engine, attempt: Attempt, whole_shapes: Mapping[str, tuple[int, ...]]
) -> Checkpoint | None:
    """Load the job's newest good checkpoint into the engine, if there is one; sweep what is incomplete."""
    root = attempt.job.checkpoints
    if attempt.world.rank == 0:
        attempt.check_fence()
        sweep(root)
    attempt.world.barrier()
    checkpoint = find_checkpoint(root, attempt.world, attempt.warn)
    if checkpoint is not None:
        load_fragments(checkpoint, engine.fragments(), whole_shapes)
        engine.loaded(int(checkpoint.record["updates"]))
    return checkpoint


def _prepare(
    job: TrainJob,
    attempt: Attempt,
    view: View,
    plan: Plan,
    engine: Engine,
    checkpoint: Checkpoint | None,
    began: float,
    whole_shapes: Mapping[str, tuple[int, ...]],
) -> tuple[Training, TrainLoader]:
    """Loader at its place, saver, logs: what the loop works with."""
    settings, world = job.settings, attempt.world
    step = checkpoint.step if checkpoint else 0
    loader = TrainLoader(
        view,
        batch=settings.batch,
        image_size=settings.image_size,
        augment=settings.augment,
        order=settings.order,
        seed=job.seed,
        threads=settings.threads,
        bad_samples=settings.bad_samples,
        rank=world.rank,
        world=world.size,
        first_step=step,
        steps=plan.steps,
    )
    earlier_s = 0.0
    if checkpoint is not None:
        loader.check_state(checkpoint.record["loader"])
        earlier_s = float(checkpoint.record["seconds"])
    saver = Saver(
        attempt.job.checkpoints, world, settings.checkpoint.keep, attempt.check_fence, attempt.report
    )

    def record(done: int) -> dict[str, Any]:
        return {
            "position": done * settings.batch,
            "updates": engine.updates,
            "loader": loader.state(done),
            "digest": attempt.digest,
            "generation": attempt.generation,
            "world": world.size,
            "engine": settings.engine.model_dump(include={"kind", "stage", "precision"}),
            "shapes": {name: list(shape) for name, shape in whole_shapes.items()},
            "seconds": earlier_s + time.monotonic() - began,
            "figures": run.last,
        }

    log_path = attempt.job.samples(attempt.generation, world.rank)
    run = Training(
        plan=plan,
        settings=settings,
        engine=engine,
        batches=iter(loader),
        saver=saver,
        world=world,
        report=attempt.report,
        stop_asked=attempt.stop,
        sample_log=SampleLog(log_path) if settings.log_samples else None,
        record=record,
    )
    if checkpoint is not None:
        run.last = dict(checkpoint.record["figures"])
    attempt.report(
        {
            "event": "start",
            "step": step,
            "steps": plan.steps,
            "world": world.size,
            "batch": plan.shape.batch,
            "micro_batch": plan.shape.micro_batch,
            "accumulation": plan.shape.accumulation,
            "images_per_epoch": plan.samples,
            "precision": settings.engine.precision,
            "engine": settings.engine.kind,
        }
    )
    return run, loader


def _metrics(job: TrainJob, plan: Plan, run: Training, module: ImageModel) -> dict[str, float]:
    names = ("loss", "grad_norm", "lr", "images_per_s")
    images = plan.steps * plan.shape.batch
    return {f"train/{name}": float(run.last[name]) for name in names if name in run.last} | {
        "cost/images_seen": float(images),
        "cost/exaflops": training_exaflops(module.config, images),
        "cost/seconds": float(run.record(plan.steps)["seconds"]),
    }


def _validate(job: TrainJob, attempt: Attempt, plan: Plan, engine: Engine) -> dict[str, float]:
    """Scores on `validate_on`, after the last step."""
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
    try:
        scores = score(engine.forward, loader, attempt.world, view.samples, attempt.stop)
    finally:
        loader.close()
    attempt.report(
        {"event": "validate", "step": plan.steps, "top1": scores.top1, "loss": scores.nll, "n": scores.n}
    )
    return {"val/top1": scores.top1, "val/loss": scores.nll}


def _export(
    job: TrainJob, attempt: Attempt, view: View, module: ImageModel, model_config: Mapping[str, Any]
) -> None:
    """Write weights.safetensors from the last checkpoint, on rank 0; the others wait for it."""
    if attempt.world.rank == 0:
        attempt.check_fence()
        last = complete_checkpoints(attempt.job.checkpoints)[0]
        # Buffers are constants of the architecture; no engine splits them.
        buffers = {
            name: value for name, value in module.state_dict().items() if name not in last.record["shapes"]
        }
        save_weights(
            attempt.job.weights,
            buffers | dict(whole_tensors(last)),
            model_config,
            {
                "job": attempt.digest,
                "step": str(last.step),
                "classes": json.dumps(list(view.classes)),
                "preprocessing": json.dumps(
                    {
                        "image_size": job.settings.image_size,
                        "evaluate": job.settings.augment.evaluate,
                        "larger": job.settings.augment.larger,
                        "scale": "(pixel - 127.5) / 127.5",
                    }
                ),
                "train_fingerprint": view.fingerprint,
            },
        )
    attempt.world.barrier()

"""A training job on one rank, from its settings to its weights: what stands before and after the loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from model.flops import training_exaflops
from model.interface import ImageModel
from model.masked import MaskedPatchModel
from pipeline.config import TrainJob
from pipeline.data.assemble import Bad
from pipeline.data.mixture import open_data
from pipeline.errors import ConfigError, StopRequested
from pipeline.events import read_events
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.best import BestSoFar
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.engine import create_engine
from pipeline.train.exporting import export_weights
from pipeline.train.fragments import shapes
from pipeline.train.goodput import goodput
from pipeline.train.health import self_test
from pipeline.train.heartbeat import Heartbeat
from pipeline.train.loop import Training, save, train
from pipeline.train.objective import make_objective
from pipeline.train.parts import Parts, make_loader, make_training
from pipeline.train.plan import Plan, make_plan
from pipeline.train.probes import check_probes
from pipeline.train.remote import RemoteCheckpoints
from pipeline.train.rewinding import Rewind, leave_out, skips_of
from pipeline.train.starting import build_model, load_newest, resume
from pipeline.train.validating import validate

Result = tuple[dict[str, float], dict[str, Any]]


def run_training(job: TrainJob, attempt: Attempt) -> Result:
    """Train, validate and export; metrics and outputs for result.json, the same on all ranks."""
    settings, world = job.settings, attempt.world
    began = time.monotonic()
    view = open_data(job.data, attempt.run)
    if view.multi_label and settings.loss == "softmax" and settings.objective == "classification":
        raise ConfigError(
            "samples with several labels, and loss softmax",
            "loss sigmoid, which asks about each class for itself",
            "set pretrain.loss=sigmoid",
        )
    plan = make_plan(settings, samples=view.samples, world=world.size, seed=job.seed)
    if settings.engine.self_test:
        self_test(settings.optimizer, settings.engine, world, plan.shape.accumulation)

    module, fill = build_model(job, view, attempt, plan.shape)
    objective = make_objective(settings, module, job.seed)
    model_config, whole_shapes = objective.kept_config(module.config).to_dict(), shapes(module)
    engine = create_engine(module, settings.optimizer, settings.engine, plan.shape, world, fill)
    average = None if settings.average is None else PolyakAverage(engine.fragments(), settings.average)
    log = attempt.job.rank_log(attempt.generation, world.rank)
    with (
        closing(engine),
        Heartbeat(log, world.rank, world.size, settings.health.stall_s, attempt.warn) as beat,
    ):
        url = settings.checkpoint.remote
        remote = None if url is None else RemoteCheckpoints(url, attempt.digest)
        checkpoint = resume(engine, average, attempt, whole_shapes, remote)
        parts = Parts(
            job,
            attempt,
            view,
            plan,
            engine,
            objective,
            average,
            beat,
            whole_shapes,
            remote,
            began,
            module.config,
        )
        check_probes(parts)
        last, spent, best = _train(parts, checkpoint)
        if average is not None:
            average.become_masters()
            engine.loaded(engine.updates)
        scores = validate(parts, plan.steps)
        best.judge(plan.steps, scores)
        metrics = _metrics(plan, module, last, spent) | scores | _spent_on(attempt)
        beat("export", plan.steps)
        export_weights(job, attempt, view, module, model_config, objective, best.best)
    attempt.report({"event": "done", "step": plan.steps})
    outputs = {
        "weights": attempt.relative(attempt.job.weights),
        "steps": plan.steps,
        "train_fingerprint": view.fingerprint,
    }
    return metrics, outputs | ({} if best.best is None else {"best": best.record()})


def _train(
    parts: Parts, checkpoint: Checkpoint | None
) -> tuple[dict[str, float], dict[str, float], BestSoFar]:
    """The loop, from the checkpoint on: figures of the last report, what all attempts together cost, and the
    best validation on the way."""
    step = checkpoint.step if checkpoint else 0
    run = make_training(parts, checkpoint, lambda done: validate(parts, done))
    try:
        if checkpoint is not None:
            run.loader.check_state(checkpoint.record["loader"])
            run.loader.take_over(_quarantine(checkpoint))
        parts.attempt.report(_start_event(parts, step))
        _stop_before_the_first(parts, step)
        if checkpoint is None and parts.job.settings.health.loss_not_finite == "rewind":
            save(run, 0)  # there is always something to go back to
        while True:
            try:
                train(run, step)
                break
            except Rewind as fault:
                step = _go_back(parts, run, fault)
    finally:
        run.loader.close()
        if run.sample_log is not None:
            run.sample_log.close()
    end = run.record(parts.plan.steps)
    spent = {"cost/seconds": end["seconds"], "cost/device_hours": end["device_seconds"] / 3600}
    return run.last, spent, run.best


def _stop_before_the_first(parts: Parts, step: int) -> None:
    """A stop asked for while this attempt started: there is nothing new to save."""
    attempt = parts.attempt
    if step < parts.plan.steps and attempt.world.any(attempt.stop()):
        attempt.report({"event": "stopped", "step": step})
        raise StopRequested(
            f"a stop was asked for at the start, with {step} of {parts.plan.steps} steps done",
            "the end of the training",
            "run the same command again to go on from here",
        )


def _go_back(parts: Parts, run: Training, fault: Rewind) -> int:
    """To the newest good checkpoint, with data left out from there on; the steps done in it."""
    run.loader.close()
    run.saver.finish()
    checkpoint = load_newest(parts.engine, parts.average, parts.attempt, parts.shapes)
    assert checkpoint is not None, "a training that may go back saves before its first step"
    health = parts.job.settings.health
    run.left_out = leave_out(
        parts.attempt,
        checkpoint,
        fault,
        run.left_out,
        allowed=health.rewinds,
        window=parts.plan.skip_window,
    )
    if run.sample_log is not None:
        run.sample_log.rewind(checkpoint.step, run.left_out[-1].first, run.left_out[-1].end)
    reopened = replace(parts, view=open_data(parts.job.data, parts.attempt.run))
    run.loader = make_loader(reopened, checkpoint.step, skips_of(run.left_out))
    # As an attempt that resumes here would know it: bad samples of the data left out count no more.
    run.loader.take_over(_quarantine(checkpoint))
    run.best.go_back(checkpoint)
    return checkpoint.step


def _quarantine(checkpoint: Checkpoint) -> list[Bad]:
    """Samples that could not be decoded until then."""
    return [Bad(*sample) for sample in checkpoint.record["quarantine"]]


def _start_event(parts: Parts, step: int) -> dict[str, Any]:
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
        "startup_s": time.monotonic() - parts.began,
    }


def _spent_on(attempt: Attempt) -> dict[str, float]:
    """Goodput over all attempts, from the job's events; the same on all ranks."""
    found = goodput(read_events(attempt.job.events)[0]) if attempt.world.rank == 0 else None
    metrics: dict[str, float] = attempt.world.from_first({} if found is None else found.metrics())
    return metrics


def _metrics(
    plan: Plan, module: ImageModel | MaskedPatchModel, last: Mapping[str, float], spent: Mapping[str, float]
) -> dict[str, float]:
    names = ("loss", "masked_accuracy", "grad_norm", "lr", "images_per_s")
    images = plan.steps * plan.shape.batch
    return {f"train/{name}": float(last[name]) for name in names if name in last} | {
        "cost/images_seen": float(images),
        "cost/exaflops": training_exaflops(module.config, images),
        **spent,
    }

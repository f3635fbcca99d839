"""What one attempt at a training is made of, and how the loop's tools are made from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

from model.config import ModelConfig
from pipeline.config import TrainJob
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.mixture import AnyView
from pipeline.data.skips import Skips
from pipeline.train.attempt import Attempt
from pipeline.train.average import PolyakAverage
from pipeline.train.best import BestSoFar
from pipeline.train.cadence import DEFAULT_MTBF_HOURS, Cadence
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.copying import Copier
from pipeline.train.heartbeat import Heartbeat
from pipeline.train.interface import Engine
from pipeline.train.loop import Training
from pipeline.train.objective import Objective
from pipeline.train.peaks import top_images_per_s
from pipeline.train.plan import Plan
from pipeline.train.profiling import Profiler
from pipeline.train.remote import RemoteCheckpoints
from pipeline.train.rewinding import read_left_out, skips_of
from pipeline.train.samplelog import SampleLog
from pipeline.train.saving import Saver
from pipeline.train.stragglers import Stragglers


@dataclass(frozen=True)
class Parts:
    """What one attempt at a training is made of."""

    job: TrainJob
    attempt: Attempt
    view: AnyView
    plan: Plan
    engine: Engine
    objective: Objective
    average: PolyakAverage | None
    beat: Heartbeat
    shapes: Mapping[str, tuple[int, ...]]
    remote: RemoteCheckpoints | None
    began: float  # time.monotonic()
    config: ModelConfig


def make_loader(parts: Parts, step: int, skips: Skips) -> TrainLoader:
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
        skips=skips,
    )


def make_eval_loader(parts: Parts, view: AnyView) -> EvalLoader:
    """Each sample of `view` once over all ranks, prepared as for evaluation."""
    settings, world = parts.job.settings, parts.attempt.world
    return EvalLoader(
        view,
        batch=world.size * parts.plan.shape.micro_batch,
        image_size=settings.image_size,
        augment=settings.augment,
        threads=settings.threads,
        rank=world.rank,
        world=world.size,
    )


def make_training(
    parts: Parts, checkpoint: Checkpoint | None, validate: Callable[[int], Mapping[str, float]]
) -> Training:
    """What the loop works with; its loader is set for each stretch."""
    settings, attempt, engine = parts.job.settings, parts.attempt, parts.engine
    world = attempt.world
    earlier_s = float(checkpoint.record["seconds"]) if checkpoint else 0.0
    earlier_device_s = checkpoint.device_seconds if checkpoint else 0.0

    def record(done: int) -> dict[str, Any]:
        state = run.loader.state(done)
        return {
            "position": state["position"],
            "updates": engine.updates,
            "loss_scaler": engine.loss_scaler(),
            "loader": state,
            "quarantine": [astuple(bad) for bad in run.loader.quarantine],
            "digest": attempt.digest,
            "generation": attempt.generation,
            "world": world.size,
            "engine": settings.engine.model_dump(include={"kind", "stage", "precision"}),
            "shapes": {name: list(shape) for name, shape in parts.shapes.items()},
            "seconds": earlier_s + time.monotonic() - parts.began,
            # Attempts may differ in their ranks, so this is not seconds × the ranks of the last.
            "device_seconds": earlier_device_s + world.size * (time.monotonic() - parts.began),
            "figures": run.last,
            "rewinds": [asdict(entry) for entry in run.left_out],
            "best": run.best.record(),
        }

    log = attempt.job.samples(attempt.generation, world.rank)
    first_step = checkpoint.step if checkpoint else 0
    left_out = read_left_out(attempt.job, checkpoint)
    run = Training(
        plan=parts.plan,
        settings=settings,
        engine=engine,
        objective=parts.objective,
        loader=make_loader(parts, first_step, skips_of(left_out)),
        left_out=left_out,
        saver=_saver(parts),
        cadence=_cadence(parts, first_step),
        world=world,
        report=attempt.report,
        stop_asked=attempt.stop,
        sample_log=SampleLog(log) if settings.log_samples else None,
        average=parts.average,
        beat=parts.beat,
        record=record,
        profiler=_profiler(parts),
        validate=lambda done: run.best.judge(done, validate(done)),
        best=BestSoFar(settings.checkpoint.keep_best, checkpoint),
        stragglers=Stragglers(world),
        top_speed=top_images_per_s(parts.config, world.device, settings.engine.arithmetic),
        last=dict(checkpoint.record["figures"]) if checkpoint else {},
    )
    return run


def _profiler(parts: Parts) -> Profiler:
    attempt, plan = parts.attempt, parts.plan
    world, job = attempt.world, attempt.job
    return Profiler(
        parts.job.settings.profile.steps,
        plan.communication_every,
        world,
        lambda step: job.profile(step, world.rank),
        attempt.report,
    )


def _saver(parts: Parts) -> Saver:
    attempt, keep, keep_every = parts.attempt, parts.job.settings.checkpoint.keep, parts.plan.keep_every
    copier = None
    if parts.remote is not None:
        copier = Copier(parts.remote, attempt.world, keep, keep_every, attempt.report)
    return Saver(
        attempt.job.checkpoints,
        attempt.world,
        keep,
        attempt.check_fence,
        attempt.report,
        keep_every=keep_every,
        copier=copier,
    )


def _cadence(parts: Parts, step: int) -> Cadence:
    settings = parts.job.settings.checkpoint
    hours = (settings.mtbf_hours or DEFAULT_MTBF_HOURS) if settings.every == "auto" else None
    return Cadence(parts.plan.save_every, parts.attempt.world, step, hours)

"""The training loop: one function, read from top to bottom.

A step takes one batch (order and masks: pipeline/data) and makes one update of the optimizer. Batch t
feeds step t + 1; steps are counted from 1. Ranks agree by one small all-reduce before the update on
everything that changes the path: whether the loss is finite, whether to stop, whether a save is down.

The loss of a step is the mean over the samples of the whole batch that have a weight: each rank divides
its sums by the weights of all ranks, so ranks, micro-batches and accumulation change nothing but
rounding.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import astuple, dataclass, field
from typing import Any

import torch

from pipeline.config import TrainSettings
from pipeline.data.assemble import Bad, Batch
from pipeline.data.loader import TrainLoader
from pipeline.errors import StopRequested, TrainingError
from pipeline.train.average import PolyakAverage
from pipeline.train.best import BestSoFar
from pipeline.train.cadence import Cadence
from pipeline.train.interface import Engine
from pipeline.train.meters import Meters
from pipeline.train.objective import Objective, Part
from pipeline.train.optim import learning_rate
from pipeline.train.plan import Plan
from pipeline.train.profiling import Profiler
from pipeline.train.rewinding import LeftOut, Rewind
from pipeline.train.samplelog import SampleLog
from pipeline.train.saving import Saver
from pipeline.train.spikes import SpikeDetector
from pipeline.train.stragglers import Stragglers
from pipeline.train.updates import before_update, update_ratio
from pipeline.train.world import World

SHOWN_IDS = 16  # sample ids in a message


@dataclass
class Training:
    """What the loop works with; lives as long as one attempt."""

    plan: Plan
    settings: TrainSettings
    engine: Engine
    objective: Objective
    loader: TrainLoader
    saver: Saver
    cadence: Cadence
    world: World
    report: Callable[[Mapping[str, Any]], None]
    stop_asked: Callable[[], bool]
    sample_log: SampleLog | None
    average: PolyakAverage | None
    beat: Callable[[str, int], None]  # phase, steps done: says where this rank is
    record: Callable[[int], Mapping[str, Any]]  # what a checkpoint after a step says beside its fragments
    profiler: Profiler
    validate: Callable[[int], object]  # scores the network after a step; raises StopRequested
    best: BestSoFar
    stragglers: Stragglers
    top_speed: float | None  # images/s of one device at its peak; None: not known
    left_out: tuple[LeftOut, ...] = ()  # rewinds of the job until now
    skipped: int = 0  # updates left out in this attempt because something was not finite
    overflows: int = 0  # updates left out in this attempt because float16 overflowed at its loss scale
    last: dict[str, float] = field(default_factory=dict)  # figures of the last report


@dataclass(frozen=True)
class Verdict:
    """What all ranks know before the update."""

    loss: float  # mean over the whole batch
    finite: bool
    stop: bool
    saved: bool  # every rank has written its part of the save in progress
    undecodable: bool  # some rank met a sample that it cannot decode and that is not in the quarantine


def train(run: Training, step: int) -> None:
    """Train from `step` steps done to the end, and save.

    Raises:
        StopRequested: a stop was asked for; a checkpoint of the last step done is complete.
        TrainingError: a loss, or several gradients in a row, were not finite.
        Rewind: the latter, where the settings let the training go back.
    """
    plan, engine, saver = run.plan, run.engine, run.saver
    meters = Meters(plan.shape.batch, plan.steps, step, run.world.size, run.top_speed)
    health = run.settings.health
    unusual = SpikeDetector(health.spike) if health.spike is not None else None
    skips_in_a_row = 0
    engine.training(True)
    while step < plan.steps:
        run.profiler.begin(step + 1)
        run.beat("data", step)
        asked_s = time.perf_counter()
        batch = next(run.loader)
        meters.waited(waited_s := time.perf_counter() - asked_s)
        run.stragglers.waited(waited_s)

        run.beat("compute", step)
        seed_chance(plan.seed, step, run.world.rank)
        losses = forward_and_backward(run, batch)
        run.beat("agree", step)
        verdict = agree(run, losses)
        if verdict.undecodable:
            quarantine(run, step + 1)
        if not verdict.finite and health.loss_not_finite == "stop":
            raise not_finite(run, step + 1, batch, losses)

        run.beat("update", step)
        step += 1
        logged = step % plan.log_every == 0 or step == plan.steps or verdict.stop
        before = before_update(engine.fragments()) if logged else None
        rate = learning_rate(step, plan.steps, plan.warmup, run.settings.optimizer, plan.cooldown)
        # A loss that is not finite gives gradients that are not; then no rank changes anything.
        applied = engine.step(rate, finite=verdict.finite)
        if applied and not verdict.finite:
            raise not_finite(run, step, batch, losses)
        if applied and run.average is not None:
            run.average.update(engine.updates)
        fault = not applied and not engine.overflowed
        skips_in_a_row = 0 if applied else skips_in_a_row + fault
        run.skipped += fault
        run.overflows += engine.overflowed
        if skips_in_a_row == health.skips_in_a_row:
            raise too_many_skips(run, step, skips_in_a_row)
        if run.sample_log is not None:
            run.sample_log.write(step, batch.ids)
        meters.stepped(step)
        meters.paused(run.profiler.end(step))

        if before is not None:
            ratio = update_ratio(before, engine.fragments(), run.world)
            report_progress(run, meters, step, verdict.loss, rate, ratio)
        if unusual is not None and verdict.finite and (what := unusual(verdict.loss)) is not None:
            run.report({"event": "warning", "message": f"step {step}: {what}"})

        stop = verdict.stop
        if plan.validate_every is not None and step % plan.validate_every == 0 and step < plan.steps:
            stop = validate(run, meters, step) or stop

        run.beat("save", step)
        if saver.active and verdict.saved:
            saver.complete()
            decided = run.cadence.saved(step, saver.cost)
            if decided is not None:
                run.report({"event": "cadence", "step": step, "save_every": decided})
        if run.cadence.due(step) or run.best.found_at(step) or stop or step == plan.steps:
            save(run, step)
        if stop and step < plan.steps:
            saver.finish()
            run.report({"event": "stopped", "step": step})
            raise StopRequested(
                f"a stop was asked for; step {step} of {plan.steps} is done and saved",
                "the end of the training",
                "run the same command again to go on from here",
            )
    saver.finish()


def validate(run: Training, meters: Meters, step: int) -> bool:
    """Score the network on the way; True if a stop was asked for meanwhile. Training is not disturbed."""
    began = time.perf_counter()
    try:
        run.validate(step)
    except StopRequested:
        return True
    finally:
        run.engine.training(True)
        meters.paused(time.perf_counter() - began)
    return False


def save(run: Training, step: int) -> None:
    """Begin to save the state after `step`; all ranks together."""
    fragments = run.engine.fragments() + (run.average.fragments if run.average else [])
    run.saver.start(step, fragments, run.record(step), run.last)


def forward_and_backward(run: Training, batch: Batch) -> torch.Tensor:
    """Gradients of this rank's part; the loss share of each micro-batch, (micro-batches,)."""
    device, size = run.world.device, run.plan.shape.micro_batch
    weights = run.world.sums([float(batch.weights.sum())])[0] or 1.0
    images = torch.split(batch.images.to(device, non_blocking=True), size)
    labels = torch.split(batch.labels.to(device, non_blocking=True), size)
    sample_weights = torch.split(batch.weights.to(device, non_blocking=True), size)
    ids = torch.split(batch.ids, size)
    shares = []
    for i, pixels in enumerate(images):
        part = Part(batch.step, sample_weights[i], ids[i])
        with run.stragglers.forward() if i == 0 else nullcontext():
            total = run.objective.loss_sum(run.engine, normalise(pixels), labels[i], part)
        share = total / weights
        run.engine.backward(share, last=i == len(images) - 1)
        shares.append(share.detach())
    return torch.stack(shares)


def agree(run: Training, losses: torch.Tensor) -> Verdict:
    """One all-reduce at the step boundary, before the update."""
    share = losses.sum().item()
    finite = math.isfinite(share)
    flags = [not finite, run.stop_asked(), not run.saver.settled, bool(run.loader.fresh)]
    loss, broken, stop, writing, bad = run.world.sums([share if finite else 0.0, *flags])
    return Verdict(loss if broken == 0 else math.nan, broken == 0, stop > 0, writing == 0, bad > 0)


def quarantine(run: Training, step: int) -> None:
    """Tell all ranks what each could not decode; past the budget all of them raise the same DataError."""
    found = [
        Bad(*sample) for part in run.world.gather([astuple(b) for b in run.loader.fresh]) for sample in part
    ]
    new = run.loader.take_over(found)
    if new:
        samples = [{"id": bad.id, "key": bad.key, "reason": bad.reason} for bad in new]
        run.report({"event": "quarantine", "step": step, "samples": samples})


def report_progress(
    run: Training, meters: Meters, step: int, loss: float, rate: float, update: float
) -> None:
    norm = run.engine.grad_norm()
    position = int(run.loader.state(step)["position"])
    figures = {"loss": loss, "grad_norm": norm, "lr": rate, "update_ratio": update, **meters.report(step)}
    figures |= run.objective.figures(run.world) | run.profiler.figures()
    run.last = {name: value for name, value in figures.items() if math.isfinite(value)}
    if (slow := run.stragglers.compare()) is not None:
        run.report({"event": "warning", "message": f"step {step}: {slow}"})
    run.report(
        {
            "event": "progress",
            "step": step,
            **run.last,
            "loss": run.last.get("loss"),  # JSON has no infinity; None: not finite
            "grad_norm": run.last.get("grad_norm"),
            "position": position,
            "epoch": position / run.plan.samples,
            "skipped": run.skipped,
            **_of_float16(run),
        }
    )


def _of_float16(run: Training) -> dict[str, float]:
    scaler = run.engine.loss_scaler()
    return {} if scaler is None else {"overflows": run.overflows, "loss_scale": scaler["cur_scale"]}


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 to float32 in [-1, 1], on the device the pixels are on."""
    return (pixels.float() - 127.5) / 127.5


def seed_chance(seed: int, step: int, rank: int) -> None:
    """Dropout and stochastic depth of a step depend on (seed, step, rank); no state needs saving."""
    digest = hashlib.blake2b(f"dropout {seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)


def not_finite(run: Training, step: int, batch: Batch, losses: torch.Tensor) -> TrainingError:
    """The error that names step, ranks and samples; all ranks together, before the update."""
    size = run.plan.shape.micro_batch
    bad = [i for i, loss in enumerate(losses.tolist()) if not math.isfinite(loss)]
    mine = [int(x) for i in bad for x in batch.ids[i * size : (i + 1) * size]]
    by_rank = {rank: ids for rank, ids in enumerate(run.world.gather(mine)) if ids}
    ids = [x for found in by_rank.values() for x in found]
    shown = ", ".join(map(str, ids[:SHOWN_IDS])) + (
        f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
    )
    return TrainingError(
        f"the loss of step {step} is not finite on ranks {sorted(by_rank)}, with samples {shown}",
        "a finite loss",
        "nothing was updated; look at these samples, lower the learning rate or lengthen the warm-up",
    )


def too_many_skips(run: Training, step: int, skips: int) -> TrainingError | Rewind:
    """What ends the training, or sends it back to its last checkpoint."""
    error = TrainingError(
        f"gradients were not finite in {skips} steps in a row, the last is step {step}",
        "finite gradients",
        "these updates were left out; lower the learning rate, lengthen the warm-up or use float32",
    )
    return Rewind(step, error) if run.settings.health.loss_not_finite == "rewind" else error

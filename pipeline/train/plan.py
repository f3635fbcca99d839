"""From settings to the numbers of a training; everything is checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import TrainSettings, to_steps
from pipeline.errors import ConfigError
from pipeline.train.shape import BatchShape


@dataclass(frozen=True)
class Plan:
    """Numbers of a training that are known before its first step."""

    steps: int
    warmup: int  # steps
    cooldown: int  # steps
    log_every: int  # steps
    validate_every: int | None  # steps; None: only after the last
    skip_window: int | None  # batches left out before a fault; None: all since the checkpoint
    save_every: int | None  # steps; None: only at the end and when stopped, or as cadence.py says
    keep_every: int | None  # steps; the checkpoint at each multiple stays for good
    shape: BatchShape
    samples: int  # in an epoch
    communication_every: int | None  # steps; of one in so many the share of communication is measured
    seed: int


def make_plan(settings: TrainSettings, *, samples: int, world: int, seed: int) -> Plan:
    """Durations in steps, and the shape of a batch over `world` ranks.

    Raises ConfigError when the ranks are more than the samples, or the batch does not divide.
    """
    if world > samples:
        raise ConfigError(
            f"{world} ranks for a training set of {samples} samples",
            "at least one sample for each rank",
            f"set workers to {samples} or fewer, or use more data",
        )

    def steps(duration: str) -> int:
        return to_steps(duration, batch=settings.batch, samples=samples)

    total = steps(settings.duration)
    warmup = steps(settings.optimizer.warmup)
    if total == 0:
        raise ConfigError(f"duration {settings.duration!r}, no step", "at least one step", "raise duration")
    cooldown = steps(settings.optimizer.cooldown)
    if warmup + cooldown > total:
        raise ConfigError(
            f"a warm-up of {warmup} steps and a cool-down of {cooldown} in a training of {total}",
            "both to fit into the training",
            "shorten optimizer.warmup or cooldown, or lengthen duration",
        )
    if beyond := [step for step in settings.profile.steps if step > total]:
        raise ConfigError(
            f"profile.steps has {beyond[0]} in a training of {total} steps",
            f"steps from 1 to {total}",
            "choose earlier steps, or lengthen duration",
        )
    every, keep_every = settings.checkpoint.every, settings.checkpoint.keep_every
    window, validate = settings.health.skip_window, settings.validation.every
    communication = settings.profile.communication
    return Plan(
        steps=total,
        warmup=warmup,
        cooldown=cooldown,
        log_every=max(1, steps(settings.log_every)),
        validate_every=None if validate is None else max(1, steps(validate)),
        save_every=None if every in (None, "auto") else max(1, steps(every)),
        skip_window=None if window is None else max(1, steps(window)),
        keep_every=None if keep_every is None else max(1, steps(keep_every)),
        shape=batch_shape(settings.batch, settings.micro_batch, world),
        samples=samples,
        communication_every=None if communication is None else max(1, steps(communication)),
        seed=seed,
    )


def batch_shape(batch: int, micro_batch: int | None, world: int) -> BatchShape:
    """batch = world × micro_batch × accumulation; a batch that does not divide is never rounded.

    `micro_batch` None: each rank holds all of its part at once.
    """
    unit = world * (micro_batch or 1)
    if batch % unit:
        below, above = batch // unit * unit, (batch // unit + 1) * unit
        nearest = below if below and batch - below <= above - batch else above
        parts = f"{world} ranks" + (f" × micro_batch {micro_batch}" if micro_batch else "")
        raise ConfigError(
            f"batch {batch} does not divide by {parts} = {unit}",
            f"a multiple of {unit}",
            f"set batch to {nearest}, the nearest that works, or change the ranks"
            + (" or micro_batch" if micro_batch else ""),
        )
    size = micro_batch or batch // world
    return BatchShape(batch, size, batch // world // size)

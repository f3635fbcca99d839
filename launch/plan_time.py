"""How fast a training will be: as measured, as told, or as assumed, and which of them it was."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.plan_devices import Device, assumed_mfu
from model.flops import FLOPS_PER_MAC, FORWARD_AND_BACKWARD, macs
from model.zoo import model_config
from pipeline.config import TrainSettings
from pipeline.errors import UserError
from pipeline.events import read_events
from pipeline.rundir import JobDir, RunDir, read_json
from pipeline.stages import pretrain

FLOPS_A_MAC = FLOPS_PER_MAC * FORWARD_AND_BACKWARD
# One core, ImageNet's own sizes and qualities, decoding the crop's region, crop and resize to 224 px: 621 to
# 751 a second measured on the build machine; photos stored at a shorter side of 384 take half of that time.
_PHOTOS_A_THREAD = 600
_RECOMPUTED = 4 / 3  # activation checkpointing: the forward pass twice


@dataclass(frozen=True, slots=True)
class Rate:
    """Images in a second over all ranks. `how` is the sentence that says where it comes from."""

    images_per_s: float
    mfu: float  # share of the devices' peak that this is; of useful operations, recomputing excluded
    measured: bool
    how: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a run reached in its pre-training."""

    run: str
    model: str
    image_size: int
    precision: str
    world: int
    images_per_s: float
    flops_per_image: float


def assumed_rate(
    flops_per_image: float, settings: TrainSettings, device: Device, world: int, mfu: float | None
) -> Rate:
    """From the device's published peak and a share of it, given or assumed."""
    precision = settings.engine.precision
    share = assumed_mfu(device, settings.engine.arithmetic) if mfu is None else mfu
    useful = share / (_RECOMPUTED if settings.engine.activation_checkpointing else 1)
    peak = device.peak_tflops[settings.engine.arithmetic]
    how = (
        f"{'assumed' if mfu is None else 'given'}: {share:.0%} of {device.name}'s {peak:g} TFLOP/s "
        f"in {precision} ({device.source})"
    )
    if settings.engine.activation_checkpointing:
        how += ", a quarter of it spent on recomputing activations"
    return Rate(world * peak * 1e12 * useful / flops_per_image, useful, False, how)


def held_by_decoding(rate: Rate, threads: int) -> Rate:
    """No faster than `threads` decode photos to training crops."""
    limit = threads * _PHOTOS_A_THREAD
    if rate.images_per_s <= limit:
        return rate
    how = f"assumed: {threads:,} threads decode {_PHOTOS_A_THREAD} photos/s each, which the devices wait for"
    return Rate(limit, rate.mfu * limit / rate.images_per_s, False, how)


def given_rate(
    images_per_s: float, flops_per_image: float, settings: TrainSettings, device: Device, world: int
) -> Rate:
    share = _share(images_per_s, flops_per_image, settings, device, world)
    return Rate(images_per_s, share, True, "given: images/s over all ranks")


def measured_rate(
    found: Measurement, flops_per_image: float, settings: TrainSettings, device: Device, world: int
) -> Rate:
    """Scaled from a run: the same operations a second on each rank."""
    images_per_s = found.images_per_s / found.world * world * (found.flops_per_image / flops_per_image)
    how = f"measured in {found.run}: {found.images_per_s:,.0f} images/s on {found.world} ranks"
    if found.world != world:
        how += f", scaled in proportion to {world}"
    same = (found.model, found.image_size) == (settings.model.name, settings.image_size)
    if not same or found.flops_per_image != flops_per_image:
        how += f", with {found.model} at {found.image_size} px, scaled by operations"
    if found.precision != settings.engine.precision:
        how += f", in {found.precision} and not {settings.engine.precision}"
    return Rate(images_per_s, _share(images_per_s, flops_per_image, settings, device, world), True, how)


def measured_again(rate: Rate, device: Device, settings: TrainSettings, measured_on: Device) -> Rate:
    """Another training on one device at the share of the peak that was measured: images of one operation."""
    peak = device.peak_tflops[settings.engine.arithmetic] * rate.mfu
    how = f"the share of {measured_on.name}'s peak that pre-training reached, {rate.mfu:.1%}"
    return Rate(peak * 1e12, rate.mfu, True, how)


def _share(
    images_per_s: float, flops_per_image: float, settings: TrainSettings, device: Device, world: int
) -> float:
    return images_per_s * flops_per_image / (world * device.peak_tflops[settings.engine.arithmetic] * 1e12)


# ---------------------------------------------------------------- a run's own figures


def measure_run(path: Path) -> Measurement | None:
    """What the pre-training of the run in `path` reached; None where it has reported no rate yet."""
    jobs = [(file.parent, read_json(file)) for file in sorted(path.glob("jobs/*/job.json"))]
    trainings = [
        (directory, job) for directory, job in jobs if job is not None and job["stage"] == pretrain.STAGE
    ]
    found = [
        measurement
        for directory, job in trainings
        if (measurement := _measure(path, directory, job)) is not None
    ]
    return found[-1] if found else None


def _measure(path: Path, directory: Path, job: dict[str, object]) -> Measurement | None:
    events, _ = read_events(JobDir(directory).events)
    starts = [event for event in events if event["event"] == "start" and "world" in event]
    rates = [event["images_per_s"] for event in events if event["event"] == "progress"]
    work = job.get("work")
    if not starts or not rates or not isinstance(work, dict) or "settings" not in work:
        return None
    settings = TrainSettings.model_validate(work["settings"])
    options: dict[str, Any] = dict(settings.model.options)
    network = model_config(settings.model.name, num_classes=2, image_size=settings.image_size, **options)
    return Measurement(
        run=str(path),
        model=settings.model.name,
        image_size=settings.image_size,
        precision=settings.engine.precision,
        world=int(starts[-1]["world"]),
        # The first report includes start-up; the median forgives checkpoints and a busy hour.
        images_per_s=statistics.median(rates[1:] or rates),
        flops_per_image=FLOPS_A_MAC * macs(network),
    )


def measure_other(path: Path) -> Measurement:
    """As `measure_run`, for a run that was named.

    Raises:
        UserError: there is nothing to read there.
    """
    found = measure_run(RunDir(path).path)
    if found is None:
        raise UserError(
            f"{path} holds no pre-training that has reported its images/s",
            "the directory of a run, as runs/demo",
            "name another one, or give --images-per-s",
        )
    return found

"""What the fine-tuning jobs of a run will take: all datasets, starts, learning rates and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launch.plan_data import UNKNOWN_CLASSES, DataSize
from launch.plan_devices import Device, find_device
from launch.plan_memory import Load, Memory, memory_of, moments_of
from launch.plan_time import FLOPS_A_MAC, Rate, assumed_rate, measured_again
from model.flops import count_parameters, macs
from pipeline.config import FinetuneProtocol, RunConfig, TrainSettings, to_steps
from pipeline.graph import Planned
from pipeline.rundir import RunDir
from pipeline.stages import finetune
from pipeline.train.network import network_of


@dataclass(frozen=True, slots=True)
class Transfer:
    """Jobs of the fan-out together. `memory` is that of the largest job."""

    trainings: int
    images: int
    exaflops: float
    device_hours: float
    hours: float  # when the fan-out has all devices of pre-training
    memory: Memory
    disk_bytes: int  # last checkpoint and weights of each
    unknown: tuple[str, ...]  # datasets not counted: a duration in epochs of an unknown length
    how: str


@dataclass(frozen=True, slots=True)
class _Dataset:
    """The trainings on one dataset."""

    trainings: int
    images: int
    flops: float
    memory: Memory
    disk_bytes: int


def plan_transfer(
    config: RunConfig,
    run: RunDir,
    planned: Mapping[str, Planned],
    sizes: Mapping[str, DataSize],
    device: Device,
    measured: Rate | None,
    mfu: float | None,
) -> Transfer:
    """Operations, time, memory and disk of every choose and finetune job, done or not.

    `measured` is pre-training's rate, if it was: fine-tuning is then taken to reach as many operations a
    second. Evaluation (a forward pass over each test set) is not counted.
    """
    protocol = config.transfer.protocol
    if not isinstance(protocol, FinetuneProtocol):
        return Transfer(0, 0, 0.0, 0.0, 0.0, _NOTHING, 0, (), f"{protocol.kind} trains nothing")
    slots, at = _where(config, device)
    settings = {name: _settings(config, run, planned, name) for name in config.transfer.datasets}
    first = next(iter(settings.values()))
    parts: dict[str, _Dataset] = {}
    for name, own in settings.items():
        if sizes[name].train is not None or "epoch" not in own.duration:
            samples = protocol.on(name).train_samples
            parts[name] = _dataset(name, own, sizes[name], samples, planned, at.name != "cpu")
    flops = sum(part.flops for part in parts.values())
    rate = (
        measured_again(measured, at, first, device)
        if measured is not None and at.name == device.name
        else assumed_rate(1.0, first, at, 1, mfu)
    )
    # A rate of images of one operation each, on one device.
    device_hours = flops / rate.images_per_s / 3600
    memories = [part.memory for part in parts.values()]
    return Transfer(
        trainings=sum(part.trainings for part in parts.values()),
        images=sum(part.images for part in parts.values()),
        exaflops=flops / 1e18,
        device_hours=device_hours,
        hours=device_hours / slots,
        memory=max(memories, key=lambda memory: memory.total, default=_NOTHING),
        disk_bytes=sum(part.disk_bytes for part in parts.values()),
        unknown=tuple(name for name in settings if name not in parts),
        how=rate.how,
    )


_NOTHING = Memory(0, 0, 0, 0, 0, 0, 0, 0, 0)


def _where(config: RunConfig, device: Device) -> tuple[int, Device]:
    """How many devices the fan-out has at once, and which."""
    gang, fanout = config.pretrain.gang, config.fanout
    if fanout.gpus_per_job > 0 and device.name != "cpu":
        return max(1, round(gang.workers * gang.gpus_per_worker)), device
    jobs = max(1, int(gang.workers * gang.cpus_per_worker // fanout.cpus_per_job))
    return jobs, find_device("cpu", cores=fanout.cpus_per_job)


def _settings(config: RunConfig, run: RunDir, planned: Mapping[str, Planned], dataset: str) -> TrainSettings:
    """How a training on `dataset` is done; as the stage itself says it, which reads no file for this one."""
    protocol, start = config.transfer.protocol, config.transfer.starts[0]
    assert isinstance(protocol, FinetuneProtocol), "plan_transfer has looked"
    rates = protocol.on(dataset).learning_rates
    name = (
        finetune.choice_name(dataset, start, rates[0])
        if len(rates) > 1
        else finetune.job_name(dataset, start, config.transfer.seeds[0])
    )
    item = planned[name]
    return finetune.work(config, run, item.job, item.inputs).settings


def _dataset(
    name: str,
    settings: TrainSettings,
    size: DataSize,
    train_samples: int | None,
    planned: Mapping[str, Planned],
    gpu: bool,
) -> _Dataset:
    network = network_of(settings.model, settings.image_size, size.classes or UNKNOWN_CLASSES)
    parameters, moments = count_parameters(network), moments_of(settings)
    samples = min(train_samples or size.train or 1, size.train or 10**12)
    images = to_steps(settings.duration, batch=settings.batch, samples=samples) * settings.batch
    jobs = sum(
        1
        for item in planned.values()
        if item.job.stage in (finetune.CHOOSE, finetune.STAGE) and item.job.slice["dataset"] == name
    )
    load = Load(settings.batch, settings.micro_batch or settings.batch, 1, settings.engine, moments, gpu)
    return _Dataset(
        trainings=jobs,
        images=jobs * images,
        flops=jobs * images * FLOPS_A_MAC * macs(network),
        memory=memory_of(network, parameters, load),
        disk_bytes=jobs * 4 * parameters * (2 + moments),
    )

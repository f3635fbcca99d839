"""What a run will take, before anything starts: parameters, operations, memory, time, disk, price.

    config ─► sizes (plan_data) ─► network ─┬─► memory of a rank (plan_memory) ─► fits? nearest (plan_fit)
                                            ├─► time (plan_time, plan_devices)
                                            └─► disk: shards, checkpoints, weights (plan_disk)

All of it is arithmetic; the only files read are a dataset's manifest and the events of a run that has been
there before. Every figure that was not measured comes with the assumption behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from launch.plan_answer import Given, RunPlan, Training
from launch.plan_data import PHOTO_BYTES, UNKNOWN_CLASSES, DataSize, size_of, size_of_pretraining
from launch.plan_devices import GIB, Device, find_device
from launch.plan_disk import disk_of
from launch.plan_fit import nearest_that_fits
from launch.plan_memory import Load, memory_of, moments_of
from launch.plan_time import (
    FLOPS_A_MAC,
    Rate,
    assumed_rate,
    given_rate,
    held_by_decoding,
    measure_other,
    measure_run,
    measured_rate,
)
from launch.plan_transfer import Transfer, plan_transfer
from model.config import ModelConfig, ViTConfig
from model.flops import count_parameters, macs
from model.masked import count_masked_parameters, outputs_of
from pipeline.config import RunConfig, to_steps
from pipeline.driver import plan_run, run_dir_of
from pipeline.errors import UserError
from pipeline.rundir import RunDir
from pipeline.stages.checks import check_run
from pipeline.train.network import network_of
from pipeline.train.plan import batch_shape


def plan_config(config: RunConfig, given: Given) -> RunPlan:
    """The plan of a run.

    Raises:
        ConfigError: a batch that its ranks cannot share, a model that does not exist.
        UserError: a duration in epochs of a dataset whose size nobody knows, an unknown device.
    """
    config = on_cluster(config, given)
    check_run(config)
    run = run_dir_of(config)
    planned = {item.job.name: item for item in plan_run(config, run)}
    settings, world = config.pretrain, config.pretrain.gang.workers
    gpu = settings.gang.gpus_per_worker > 0
    device = find_device(
        given.device or ("h100" if gpu else "cpu"),
        memory_gib=given.memory_gib,
        cores=settings.gang.cpus_per_worker,
    )
    names = {*settings.shares, *config.transfer.datasets}
    sizes = {name: size_of(config, name, run, planned) for name in sorted(names)}
    data = _pretraining(config, sizes, given)
    network = _network(config, data.classes or UNKNOWN_CLASSES)
    training = _training(config, network, data.train)
    load = _load(config, network, training, device)
    memory = memory_of(network, training.parameters, load)
    limit = None if device.memory_gib is None else round(device.memory_gib * GIB)
    fits = None if limit is None else memory.total <= limit
    nearest = (
        nearest_that_fits(network, training.parameters, load, limit, settings.batch)
        if limit is not None and not fits
        else None
    )
    rate = _rate(config, given, device, FLOPS_A_MAC * training.macs, run)
    image_bytes = data.image_bytes
    if not rate.measured and (image_bytes or 0) >= PHOTO_BYTES:
        rate = held_by_decoding(rate, world * settings.threads)
    hours = training.images / rate.images_per_s / 3600
    transfer = plan_transfer(config, run, planned, sizes, device, rate if rate.measured else None, given.mfu)
    rare = settings.checkpoint.keep_every
    kept = 0 if rare is None else training.steps // steps_of(rare, settings.batch, data.train, "pre-training")
    disk = disk_of(settings, training, moments_of(settings), kept, sizes, transfer.disk_bytes)
    device_hours = world * hours + transfer.device_hours
    return RunPlan(
        name=config.name,
        device=device,
        nodes=given.nodes,
        workers=world,
        training=training,
        memory=memory,
        fits=fits,
        nearest=nearest,
        rate=rate,
        hours=hours,
        read_mib_per_s=None if image_bytes is None else rate.images_per_s * image_bytes / 2**20,
        network_gb_per_s=network_gb_per_s(config, training.parameters, rate.images_per_s),
        transfer=transfer,
        disk=disk,
        device_hours=device_hours,
        price=None if given.price is None else given.price * device_hours,
        assumptions=_assumptions(config, given, device, sizes, data),
        warnings=(
            *_warnings(transfer, limit, fits, device),
            *_shared_lanes(settings.order.lanes, given.nodes or 1),
        ),
    )


def on_cluster(config: RunConfig, given: Given) -> RunConfig:
    """The configuration with as many workers as `nodes` × `gpus_per_node` say, one a device."""
    if given.nodes is None and given.gpus_per_node is None:
        return config
    gang = config.pretrain.gang
    each = given.gpus_per_node or (1 if given.nodes is None else max(1, gang.workers // given.nodes))
    workers = (given.nodes or 1) * each
    update: dict[str, float] = {"workers": workers}
    if given.gpus_per_node:
        update["gpus_per_worker"] = 1
    changed = gang.model_copy(update=update)
    return config.model_copy(update={"pretrain": config.pretrain.model_copy(update={"gang": changed})})


def _pretraining(config: RunConfig, sizes: Mapping[str, DataSize], given: Given) -> DataSize:
    """Size of what pre-training reads; what is given counts most."""
    how = "" if given.train_samples is given.classes is None else "the command line"
    told = DataSize(given.train_samples, None, given.classes, None, None, how)
    return size_of_pretraining(config, sizes, told)


def _network(config: RunConfig, classes: int) -> ModelConfig:
    settings = config.pretrain
    classes = classes if settings.objective == "classification" else 1
    return network_of(settings.model, settings.image_size, classes)


def _load(config: RunConfig, network: ModelConfig, training: Training, device: Device) -> Load:
    settings, world = config.pretrain, config.pretrain.gang.workers
    return Load(
        settings.batch // world,
        training.micro_batch,
        world,
        settings.engine,
        moments_of(settings),
        device.name != "cpu",
        _hidden_patch_outputs(config, network),
    )


def _parameters(config: RunConfig, network: ModelConfig) -> int:
    """Trainable numbers, those of the objective's own head included."""
    if config.pretrain.objective == "classification":
        return count_parameters(network)
    assert isinstance(network, ViTConfig), "check_run refuses masked patch prediction of a ResNet"
    return count_masked_parameters(network, config.pretrain.masked_patches.target)


def _hidden_patch_outputs(config: RunConfig, network: ModelConfig) -> int | None:
    if config.pretrain.objective == "classification" or not isinstance(network, ViTConfig):
        return None
    return prod(network.grid) * outputs_of(network, config.pretrain.masked_patches.target)


def _training(config: RunConfig, network: ModelConfig, samples: int | None) -> Training:
    settings = config.pretrain
    steps = steps_of(settings.duration, settings.batch, samples, " + ".join(settings.shares))
    shape = batch_shape(settings.batch, settings.micro_batch, settings.gang.workers)
    images, once = steps * settings.batch, macs(network)
    return Training(
        model=settings.model.name,
        image_size=settings.image_size,
        classes=network.num_classes if settings.objective == "classification" else 0,
        parameters=_parameters(config, network),
        macs=once,
        steps=steps,
        images=images,
        epochs=None if samples is None else images / samples,
        batch=settings.batch,
        micro_batch=shape.micro_batch,
        accumulation=shape.accumulation,
        exaflops=FLOPS_A_MAC * once * images / 1e18,
    )


def steps_of(duration: str, batch: int, samples: int | None, dataset: str) -> int:
    """`duration` in steps.

    Raises:
        UserError: it is in epochs, and nobody knows how long one is.
    """
    if samples is None and "epoch" in duration:
        raise UserError(
            f"a duration of {duration!r} of {dataset}, whose size is not known before it is prepared",
            "the number of its training images",
            "give --train-samples N, or set the duration in steps or samples",
        )
    return to_steps(duration, batch=batch, samples=samples or 1)


def _rate(config: RunConfig, given: Given, device: Device, flops: float, run: RunDir) -> Rate:
    """Given before measured, measured before assumed."""
    settings, world = config.pretrain, config.pretrain.gang.workers
    if given.images_per_s is not None:
        return given_rate(given.images_per_s, flops, settings, device, world)
    # An own run speaks for itself only while nobody asks about other hardware.
    own = given.mfu is None and given.device is None
    found = measure_other(given.measured) if given.measured else measure_run(run.path) if own else None
    if found is not None:
        return measured_rate(found, flops, settings, device, world)
    return assumed_rate(flops, settings, device, world, given.mfu)


def network_gb_per_s(config: RunConfig, parameters: int, images_per_s: float) -> float:
    """What a rank sends in a second of training at this speed, 1e9 bytes.

    Gradients are reduced and updated parameters gathered once a step, each (W − 1) / W of 4P bytes in a ring;
    ZeRO-3 gathers parameters once more, for the backward pass.
    """
    world, engine = config.pretrain.gang.workers, config.pretrain.engine
    passes = 3 if engine.stage == 3 else 2
    a_step = passes * 4 * parameters * (world - 1) / world
    return a_step * images_per_s / config.pretrain.batch / 1e9


def _assumptions(
    config: RunConfig, given: Given, device: Device, sizes: Mapping[str, DataSize], data: DataSize
) -> tuple[str, ...]:
    name, lines = " + ".join(config.pretrain.shares), []
    if config.pretrain.mixture is not None and given.classes is None and data.classes is not None:
        lines.append(f"{name} are taken to have {data.classes} different classes; --classes says better")
    if data.classes is None and config.pretrain.objective == "classification":
        lines.append(f"{name} is taken to have {UNKNOWN_CLASSES} classes; --classes says better")
    if given.device is None:
        lines.append(f"the device is taken to be {device.name}; --device says better")
    if data.how != "its manifest" and data.image_bytes is not None:
        lines.append(f"an image of {name} is taken to have {data.image_bytes:,} bytes")
    unknown = sorted(other for other, size in sizes.items() if size.disk_bytes is None)
    if unknown:
        lines.append(f"the shards of {', '.join(unknown)} are not counted: their size is not known yet")
    lines.append("evaluation and start-up are not in the time")
    return tuple(lines)


def _warnings(transfer: Transfer, limit: int | None, fits: bool | None, device: Device) -> tuple[str, ...]:
    lines = []
    if fits is False:
        lines.append(f"pre-training does not fit into {device.memory_gib:g} GiB of {device.name}")
    if limit is not None and transfer.memory.total > limit:
        lines.append(
            f"a fine-tuning job takes {transfer.memory.total / GIB:.1f} GiB, {device.name} has "
            f"{device.memory_gib:g}: lower transfer.protocol.batch or image_size"
        )
    return tuple(lines)


def _shared_lanes(lanes: int, nodes: int) -> Iterator[str]:
    """Nodes that share a lane read the same chunks."""
    if nodes > lanes:
        yield (
            f"{nodes} nodes read from {lanes} lanes: each chunk is read by {nodes / lanes:.1f} nodes; with "
            f"remote shards set pretrain.order.lanes={nodes} or more"
        )

"""What a plan is asked with, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from launch.plan_devices import Device
from launch.plan_fit import Nearest
from launch.plan_memory import Memory
from launch.plan_time import Rate
from launch.plan_transfer import Transfer


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the user knows better than the configuration. None: not given."""

    nodes: int | None = None
    gpus_per_node: int | None = None
    device: str | None = None
    memory_gib: float | None = None  # of one device
    images_per_s: float | None = None  # over all ranks
    mfu: float | None = None
    measured: Path | None = None  # directory of a run that has trained
    price: float | None = None  # of one device for an hour
    train_samples: int | None = None
    classes: int | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """Numbers of the pre-training."""

    model: str
    image_size: int
    classes: int  # 0: masked patch prediction, which has none
    parameters: int
    macs: int  # of one image, forward
    steps: int
    images: int
    epochs: float | None
    batch: int
    micro_batch: int
    accumulation: int
    exaflops: float


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes under the run's directory, at their most."""

    data: int | None  # shards that the run writes itself; None: not known
    checkpoint: int  # fragments of all ranks of one checkpoint, file headers excluded
    kept_for_good: int  # checkpoints of `keep_every`
    checkpoints: int  # all that are kept, the one being written, and those held for the copier
    remote: int  # not under the run's directory: at checkpoint.remote
    weights: int
    sample_log: int
    transfer: int

    @property
    def total(self) -> int:
        parts = (self.checkpoints, self.weights, self.sample_log, self.transfer)
        return (self.data or 0) + sum(parts)


@dataclass(frozen=True, slots=True)
class RunPlan:
    name: str
    device: Device
    nodes: int | None
    workers: int
    training: Training
    memory: Memory
    fits: bool | None  # None: the device's memory is not known
    nearest: Nearest | None  # what fits, where this does not
    rate: Rate
    hours: float
    read_mib_per_s: float | None  # from the dataset, over all ranks
    network_gb_per_s: float  # that each rank must send, so that nothing waits for it
    transfer: Transfer
    disk: Disk
    device_hours: float
    price: float | None
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

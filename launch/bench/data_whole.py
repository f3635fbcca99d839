"""What `vitline bench data` measures of whole epochs, and of writing: memory, and processes together."""

from __future__ import annotations

import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from launch.bench.data_peers import our_loader
from launch.bench.data_sets import ImageSet, write_images
from pipeline.config import FolderSource, WriteSettings
from pipeline.data.write import prepare

EPOCHS = 20
_SETTLED = 4  # epochs after which every buffer has its size
WRITTEN = 256  # images of each split
_PROCESSES = (1, 2)


class Memory(NamedTuple):
    """Resident memory of this process while a loader goes through epochs, MiB."""

    settled: float
    last: float
    slope: float  # MiB an epoch, least squares over the epochs after `settled`


def measure_memory(found: ImageSet, epochs: int = EPOCHS) -> Memory:
    """Read `epochs` epochs and look at the memory after each."""
    view, process = found.view(), psutil.Process()
    steps = view.samples // found.batch
    resident = []
    with our_loader(found, view, 0, steps * epochs) as loader:
        for batch in loader:
            if batch.step % steps == steps - 1:
                resident.append(process.memory_info().rss / 2**20)
    settled = min(_SETTLED, epochs - 2)
    slope = np.polyfit(np.arange(epochs - settled), resident[settled:], 1)[0]
    return Memory(resident[settled], resident[-1], float(slope))


def measure_writing(photos: Path, root: Path, rounds: int, count: int = WRITTEN) -> list[float]:
    """Wall seconds of writing a dataset (decode, resize to 256 px, encode) with one process over those with
    two, round by round. The processes have started before the clock does."""
    images = root / "to-write"
    for split in ("train", "test"):
        write_images("large", photos, images / split, count)
    write = WriteSettings(shorter_side=256, shard_samples=16)
    source = FolderSource(source="folder", path=str(images), write=write)
    pools = {number: ProcessPoolExecutor(number, get_context("spawn")) for number in _PROCESSES}
    ratios = []
    try:
        for round_ in range(rounds + 1):  # the first starts the processes
            wall = {}
            for number in _PROCESSES if round_ % 2 else _PROCESSES[::-1]:
                began = time.perf_counter()
                prepare(source, root / "written", run=pools[number].map)
                wall[number] = time.perf_counter() - began
                shutil.rmtree(root / "written")
            ratios.append(wall[1] / wall[2])
    finally:
        for pool in pools.values():
            pool.shutdown()
    return ratios[1:]


def report_memory(found: ImageSet) -> None:
    """In a process of its own: what others have freed in this one would come and go in the figures."""
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        memory = pool.submit(measure_memory, found).result()
    print(
        f"{found.name}: memory {memory.settled:.0f} MiB after {_SETTLED + 1} epochs, "
        f"{memory.last:.0f} after {EPOCHS}; {memory.slope:+.3f} MiB an epoch"
    )


def report_writing(photos: Path, root: Path, rounds: int) -> None:
    writing = measure_writing(photos, root, rounds)
    print(f"writing: two processes {statistics.median(writing):.2f} times one (best {max(writing):.2f})")

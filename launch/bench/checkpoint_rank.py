"""What one rank does for `vitline bench checkpoint`: saves and loads the state of a training, and the same
bytes plainly, in turn.

    torchrun --standalone --nproc-per-node=2 -m launch.bench.checkpoint_rank --model vit_b16 … --out FILE

Nothing is trained: the state of the engine is filled with numbers. Every time is from the moment when all
ranks begin until all have ended, and taken from this rank's own clock. Before each reading, of ours and of
plain files, the files are taken out of the page cache, as they are for an attempt on a fresh host.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.zoo import create_model
from pipeline.config import EngineSettings, OptimizerSettings
from pipeline.rundir import write_json
from pipeline.train.engine import create_engine
from pipeline.train.fragments import Fragment, shapes
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.loading import fill_from_newest
from pipeline.train.saving import Saver
from pipeline.train.world import World, join_world

Times = dict[str, list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.bench.checkpoint_rank")
    parser.add_argument("--model", required=True)
    parser.add_argument("--stage", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="JSON with what was measured")
    given = parser.parse_args(arguments)
    with join_world(given.device, needs_group=True, leave=False) as world:
        engine, whole = make_engine(given.model, given.stage, world)
        found = measure(engine, whole, world, given.work, given.rounds)
        if world.rank == 0:
            write_json(given.out, found)
        world.barrier()


def make_engine(name: str, stage: int, world: World) -> tuple[Engine, dict[str, tuple[int, ...]]]:
    """An engine as a training on ImageNet-1k has it, with numbers in its moments."""
    module = create_model(name, num_classes=1000)
    whole = shapes(module)
    settings = EngineSettings.model_validate({"stage": stage})
    engine = create_engine(module, OptimizerSettings(), settings, BatchShape(world.size, 1, 1), world)
    for fragment in engine.fragments():
        # Pages that nobody has written are no memory yet, and copied for nothing.
        fragment.data.uniform_()
    return engine, whole


def measure(
    engine: Engine, whole: dict[str, tuple[int, ...]], world: World, work: Path, rounds: int
) -> dict[str, Any]:
    """Seconds of each round under save, plain_save, load, plain_load, stall; bytes of all ranks together."""
    stalls: list[float] = []
    root, plain = work / "checkpoints", work / f"plain-{world.rank}"
    saver = Saver(root, world, 1, lambda: None, lambda event: stalls.append(float(event["stall_s"])))
    own = engine.fragments()
    buffer = torch.cat([fragment.data.detach().cpu() for fragment in own]).numpy().view("uint8")
    times: Times = {"save": [], "plain_save": [], "load": [], "plain_load": []}
    # The one before stays until the new one is complete, plainly too.
    for step in range(1, rounds + 2):
        record = {"shapes": {name: list(shape) for name, shape in whole.items()}, "updates": step}
        contenders: dict[str, Callable[[], object]] = {
            "save": lambda: _save(saver, engine, step, record),  # noqa: B023
            "plain_save": lambda: _write(plain, buffer),
        }
        _take(contenders, step, world, times)
        drop_from_cache([*root.rglob("*"), plain])
        contenders = {
            "load": lambda: _load(root, engine.fragments(), whole, world),
            "plain_load": lambda: _read(plain, buffer),
        }
        _take(contenders, step, world, times)
    shutil.rmtree(root, ignore_errors=True)
    plain.unlink()
    counted = {name: seconds[1:] for name, seconds in times.items()}  # the first round made buffers
    whole_bytes = int(world.sums([float(len(buffer))])[0])
    return {**counted, "first_stall": stalls[:1], "stall": stalls[1:], "bytes": whole_bytes}


def _take(contenders: dict[str, Callable[[], object]], turn: int, world: World, times: Times) -> None:
    """Each of them once, the other one first at every turn; seconds until the last rank is done."""
    order = list(contenders) if turn % 2 else list(contenders)[::-1]
    for name in order:
        world.barrier()
        began = time.perf_counter()
        contenders[name]()
        world.barrier()
        times[name].append(time.perf_counter() - began)


def _save(saver: Saver, engine: Engine, step: int, record: dict[str, Any]) -> None:
    saver.start(step, engine.fragments(), record, {})
    saver.finish()


def _load(root: Path, fragments: list[Fragment], whole: dict[str, tuple[int, ...]], world: World) -> None:
    """As a training resumes: find the newest, compare its hashes, fill the fragments."""
    checkpoint = fill_from_newest(root, fragments, whole, world, _refuse)
    assert checkpoint is not None, f"no complete checkpoint in {root}"


def _refuse(message: str) -> None:
    raise AssertionError(message)


def _write(path: Path, buffer: Any) -> None:
    """The least that makes bytes last: beside, flushed to the disk, renamed."""
    beside = path.with_suffix(".partial")
    with beside.open("wb", buffering=0) as file:
        left = memoryview(buffer)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    beside.replace(path)


def _read(path: Path, buffer: Any) -> None:
    with path.open("rb", buffering=0) as file:
        left = memoryview(buffer)
        while left:
            count = file.readinto(left)
            assert count, f"{path} ends early"
            left = left[count:]


def drop_from_cache(paths: Sequence[Path]) -> None:
    """Have the next reading come from the disk, where the file system does as it is told."""
    for path in paths:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main()
    os._exit(0)  # taking gloo's threads apart can only fail, as in pipeline/train/worker.py

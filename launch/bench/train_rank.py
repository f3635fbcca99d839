"""What one rank does for `vitline bench train`: our whole training and a peer's loop, in turn.

    torchrun --standalone --nproc-per-node=2 -m launch.bench.train_rank CASE.json

Ours is pipeline/train/training.py as a worker runs it, reading real shards. Whenever it reports its
progress, which it does on every rank after each block of steps, the peer makes as many steps and ours waits.
So both meet the same neighbours, and stretches of time are compared that lie beside each other. The first
block of each compiles and fills caches; it is not counted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launch.bench.train_peers import peer_step
from pipeline.config import TrainJob
from pipeline.data.mixture import open_data
from pipeline.errors import VitlineError
from pipeline.rundir import JobDir, read_json, write_json
from pipeline.train.attempt import Attempt
from pipeline.train.network import network_of
from pipeline.train.peaks import top_images_per_s
from pipeline.train.stopping import StopSwitch
from pipeline.train.training import run_training
from pipeline.train.world import World, join_world


class _Measured(Exception):
    """All blocks are done; what a training does at its end is not measured."""


Times = tuple[float, float]  # seconds of wall and of this process' processors


def clock() -> Times:
    return time.perf_counter(), time.process_time()


@dataclass
class Alternation:
    """Told about each event of our training; runs the peer's block at each report of progress."""

    peer: Callable[[], None]
    block: int  # steps
    blocks: int  # that count
    wait: Callable[[], None]  # until the device is idle
    clock: Callable[[], Times]
    ours: list[Times] = field(default_factory=list)
    peers: list[Times] = field(default_factory=list)
    _began: Times | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] != "progress":
            return
        self.wait()
        now = self.clock()
        if self._began is not None:
            self.ours.append(_between(self._began, now))
        for _ in range(self.block):
            self.peer()
        self.wait()
        ended = self.clock()
        if self._began is not None:
            self.peers.append(_between(now, ended))
        if len(self.peers) == self.blocks:
            raise _Measured
        self._began = self.clock()


def _between(began: Times, ended: Times) -> Times:
    return ended[0] - began[0], ended[1] - began[1]


def measure(case: Mapping[str, Any], world: World) -> dict[str, Any]:
    """Seconds of each block of ours and of the peer; images/s of a device at its peak, if that is known."""
    job = TrainJob.model_validate(case["job"])
    run = Path(case["run"])
    classes = open_data(job.data, run).num_classes
    peer = peer_step(case["peer"], job.settings, classes, world)
    turns = Alternation(peer, case["block"], case["blocks"], _idle(world.device), clock)
    directory = JobDir(Path(case["out"]).parent)
    attempt = Attempt(run, directory, "bench", world, 1, turns, StopSwitch(directory.stop))
    try:
        run_training(job, attempt)
    except _Measured:
        pass
    else:
        raise AssertionError(f"the training ended after {len(turns.ours)} of {turns.blocks} blocks")
    config = network_of(job.settings.model, job.settings.image_size, classes)
    top = top_images_per_s(config, world.device, job.settings.engine.arithmetic)
    found: dict[str, Any] = {"top_images_per_s": top}
    for name, times in (("ours", turns.ours), ("peer", turns.peers)):
        found[f"{name}_s"] = [wall for wall, _ in times]
        found[f"{name}_processor_s"] = [processor for _, processor in times]
    return found


def _idle(device: torch.device) -> Callable[[], None]:
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.bench.train_rank")
    parser.add_argument("case", type=Path, help="JSON as launch/bench/train.py writes it")
    given = parser.parse_args(arguments)
    case = read_json(given.case)
    assert case is not None, f"no {given.case}"
    group = case["job"]["settings"]["engine"]["kind"] == "zero"
    with join_world(case["device"], needs_group=group, leave=False) as world:
        found = measure(case, world)
        if world.rank == 0:
            write_json(Path(case["out"]), found)
        world.barrier()


if __name__ == "__main__":
    try:
        main()
    except VitlineError as error:
        raise SystemExit(f"{error}") from None
    os._exit(0)  # taking gloo's threads apart can only fail, as in pipeline/train/worker.py

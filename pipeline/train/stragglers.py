"""Names the rank that is slower than the others in what ranks do each for themselves.

    data       waiting for its own part of the batch
    forward    the network on its first micro-batch, before anything is exchanged

In the rest of a step fast ranks wait for slow ones inside of collectives, so its length says nothing of a
rank. Under ZeRO-3 parameters are exchanged in forward too: then only `data` tells ranks apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from pipeline.train.world import World

PHASES = ("data", "forward")
LEAST_STEPS = 20  # that a judgement is made of: a hiccup is no straggler
_TIMES = 2.0  # as long as the others
_SHARE = 0.1  # of a step that it costs all of them, at least


class Stragglers:
    """Times of one rank; compared with those of the others at reports."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: tuple[int, str] | None = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._restart()

    def _restart(self) -> None:
        self._began = time.perf_counter()
        self._steps = 0
        self._spent = dict.fromkeys(PHASES, 0.0)

    def waited(self, seconds: float) -> None:
        """A step of this rank waited so long for its data."""
        self._steps += 1
        self._spent["data"] += seconds

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the first forward pass of a step."""
        if self._world.device.type == "cuda":  # the host is far ahead of its device
            pair = _event(), _event()
            pair[0].record()
            yield
            pair[1].record()
            self._events.append(pair)
        else:
            began = time.perf_counter()
            yield
            self._spent["forward"] += time.perf_counter() - began

    def compare(self) -> str | None:
        """Who is slow, once, if it is another one than before; all ranks together, after a step's end."""
        if self._world.size == 1 or self._steps < LEAST_STEPS:
            return None
        # A step's end has waited for the device.
        self._spent["forward"] += sum(begin.elapsed_time(end) / 1000 for begin, end in self._events)
        self._events.clear()
        step_s = (time.perf_counter() - self._began) / self._steps
        times = self._world.gather([self._spent[phase] / self._steps for phase in PHASES])
        step_s = self._world.from_first(step_s)
        self._restart()
        found = find_straggler(times, step_s)
        before, self._told = self._told, found
        if found is None or found == before:
            return None
        rank, phase = found
        mine, usual = times[rank][PHASES.index(phase)], _usual(times, rank, phase)
        return f"rank {rank} is slow: {phase} takes it {mine:.3g} s a step, the others {usual:.3g} s"


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def find_straggler(times: Sequence[Sequence[float]], step_s: float) -> tuple[int, str] | None:
    """The rank and phase that cost most, of `times` [rank][phase] in seconds a step; None: all are alike."""
    cost = {}
    for index, phase in enumerate(PHASES):
        rank = max(range(len(times)), key=lambda r, i=index: times[r][i])  # type: ignore[misc]
        mine, usual = times[rank][index], _usual(times, rank, phase)
        if mine > _TIMES * usual and mine - usual > _SHARE * step_s:
            cost[rank, phase] = mine - usual
    return max(cost, key=lambda place: cost[place], default=None)


def _usual(times: Sequence[Sequence[float]], rank: int, phase: str) -> float:
    index = PHASES.index(phase)
    return statistics.median(row[index] for other, row in enumerate(times) if other != rank)

"""When to save: at every n-th step, or as often as saving costs and failures make worth while (`auto`).

`auto` follows Young (1974) and Daly (2006): with C seconds that a save takes from training and M seconds
between two failures, the least is lost when saving every √(2 · C · M) seconds. C is measured: the first
save of an attempt comes after a few steps, and each save corrects the interval. Saves are written while
training goes on, so C is the stall alone; an interval of at least ten times what a save takes to be
written keeps the disk from working all the time.

M comes from the mean time between failures of one rank, divided by the ranks. The default is what a run on
16,384 GPUs saw: 419 unexpected interruptions in 54 days (Llama 3, arXiv 2407.21783, section 3.3.4), one in
50,000 hours of a GPU.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from pipeline.train.world import World

DEFAULT_MTBF_HOURS = 50_000.0  # of one rank
LEAST_S, MOST_S = 60.0, 3600.0  # whatever the formula says; people and schedulers end runs too
_FIRST = 10  # steps of an attempt before its first save measures what saving costs
_WRITES = 10  # an interval is at least so many times what writing takes


def interval_s(cost_s: float, write_s: float, mtbf_s: float) -> float:
    """Seconds between two saves; `cost_s` is the stall, `write_s` until all is on the disk."""
    best = math.sqrt(2 * cost_s * mtbf_s)
    return min(MOST_S, max(LEAST_S, _WRITES * write_s, best))


@dataclass(frozen=True)
class SaveCost:
    """What the last save took; the largest over ranks."""

    stall_s: float
    write_s: float


class Cadence:
    """Says at which steps to save; the same on all ranks."""

    def __init__(self, every: int | None, world: World, step: int, mtbf_hours: float | None) -> None:
        """
        Args:
            every: steps; None: never, or by itself where `mtbf_hours` is given.
            step: steps done when the attempt begins.
            mtbf_hours: between failures of one rank; None: not by itself.
        """
        self._every = every
        self._world = world
        self._mtbf_s = None if mtbf_hours is None else mtbf_hours * 3600 / world.size
        self._next = math.inf if mtbf_hours is None else step + _FIRST
        self._began: tuple[int, float] | None = None  # where the pace is measured from
        self._pace_s = 0.0
        self.interval: int | None = every  # steps, as last decided

    def due(self, step: int) -> bool:
        """Whether to save after `step`; called at every step."""
        if self._mtbf_s is None:
            return self._every is not None and step % self._every == 0
        now = time.monotonic()
        if self._began is None:  # the first step compiles and fills caches
            self._began = step, now
        elif step > self._began[0]:
            self._pace_s = (now - self._began[1]) / (step - self._began[0])
        if step < self._next:
            return False
        self._next = math.inf  # until this save is complete
        return True

    def saved(self, step: int, cost: SaveCost) -> int | None:
        """A save is complete, `step` steps are done now; all ranks together. The interval, if it changed."""
        if self._mtbf_s is None:
            return None
        seconds = interval_s(cost.stall_s, cost.write_s, self._mtbf_s)
        steps = self._world.from_first(max(1, round(seconds / max(self._pace_s, 1e-6))))
        self._next = step + steps
        changed = self.interval is None or abs(steps - self.interval) > self.interval // 2
        if not changed:
            return None
        self.interval = steps
        return self.interval

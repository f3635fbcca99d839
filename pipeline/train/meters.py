"""What a training measures about itself: speed, waiting, memory, time left."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass
class Meters:
    """Counts since the last report. Times in seconds, from a monotonic clock."""

    batch: int  # samples in a step, over all ranks
    steps: int  # of the whole training
    step: int  # done so far
    ranks: int = 1
    top_speed: float | None = None  # images/s of one device at its peak (peaks.py); None: not known
    _began: float = field(default_factory=time.perf_counter)
    _at: int = -1
    _waited: float = 0.0
    _rate: float = 0.0  # images/s, smoothed, for the time left
    _first_s: float | None = None  # the first step of the attempt, until it was reported

    def __post_init__(self) -> None:
        self._at = self._start = self.step

    def waited(self, seconds: float) -> None:
        """The step waited so long for data."""
        self._waited += seconds

    def stepped(self, step: int) -> None:
        """`step` is done; the first one compiles and fills caches, so it is timed for itself."""
        if step == self._start + 1:
            self._first_s = time.perf_counter() - self._began

    def paused(self, seconds: float) -> None:
        """Training stood still on purpose (validation); its speed does not suffer from that."""
        self._began += seconds

    def report(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last call; resets them.

        images_per_s is over all ranks and includes every wait but validation; data_wait_s is a mean over
        the steps; step_s a mean too, without the first step, which is first_step_s.
        """
        now = time.perf_counter()
        done, seconds = step - self._at, max(now - self._began, 1e-9)
        rate = done * self.batch / seconds
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        figures = {
            "images_per_s": rate,
            "images_per_s_device": rate / self.ranks,
            "data_wait_s": self._waited / max(done, 1),
            "eta_s": (self.steps - step) * self.batch / max(self._rate, 1e-9),
            "memory_mib": peak_memory_mib(),
        }
        if self.top_speed is not None:
            figures["mfu"] = rate / self.ranks / self.top_speed
        if self._first_s is not None:
            figures["first_step_s"], self._first_s = self._first_s, None
        self._began, self._at, self._waited, self.step = now, step, 0.0, step
        return figures


def peak_memory_mib() -> float:
    """Peak of this process: GPU memory where there is a GPU in use, else resident memory.

    VmHWM and not ru_maxrss: the latter a forked process inherits from its parent.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "a Linux without VmHWM"
    return int(found[1]) / 2**10

"""What a training measures about itself: speed, waiting, memory, time left."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch


@dataclass
class Meters:
    """Counts since the last report. Times in seconds, from a monotonic clock."""

    batch: int  # samples in a step, over all ranks
    steps: int  # of the whole training
    step: int  # done so far
    _began: float = field(default_factory=time.perf_counter)
    _at: int = -1
    _waited: float = 0.0
    _rate: float = 0.0  # images/s, smoothed, for the time left

    def __post_init__(self) -> None:
        self._at = self.step

    def waited(self, seconds: float) -> None:
        """The step waited so long for data."""
        self._waited += seconds

    def report(self, step: int) -> dict[str, float]:
        """Figures of the steps since the last call; resets them.

        images_per_s is over all ranks and includes every wait; data_wait_s is a mean over the steps.
        """
        now = time.perf_counter()
        done, seconds = step - self._at, max(now - self._began, 1e-9)
        rate = done * self.batch / seconds
        self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        figures = {
            "images_per_s": rate,
            "data_wait_s": self._waited / max(done, 1),
            "eta_s": (self.steps - step) * self.batch / max(self._rate, 1e-9),
            "memory_mib": peak_memory_mib(),
        }
        self._began, self._at, self._waited, self.step = now, step, 0.0, step
        return figures


def peak_memory_mib() -> float:
    """Peak of this process: GPU memory where there is a GPU in use, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

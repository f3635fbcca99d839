"""Notices a loss that jumps out of what was usual: a sign of a rate too high or of bad data."""

from __future__ import annotations

import math
from collections import deque

WINDOW = 100  # steps that "usual" is made of
_LEAST = 20  # steps before there is a usual


class SpikeDetector:
    """Mean and deviation of the last losses; a spike does not become part of them."""

    def __init__(self, deviations: float) -> None:
        self._deviations = deviations
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, loss: float) -> str | None:
        """What is unusual about this loss, or None."""
        if len(self._losses) >= _LEAST:
            mean = sum(self._losses) / len(self._losses)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self._losses) / len(self._losses))
            above = (loss - mean) / max(deviation, 1e-12)
            if above > self._deviations:
                return f"loss {loss:.4g} is {above:.1f} deviations above its recent mean {mean:.4g}"
        self._losses.append(loss)
        return None

"""Training curves of a job, from its event log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.events import Event, read_events

# More than a plot of this width can show; the page stays small.
MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """One training: `steps` and `losses` of the same length, thinned; `images` seen at each step.

    Args:
        starts: the start event of each attempt. skipped: steps without an update.
        rate: images/s, median over the progress events.
        validations: (step, top1) of each.
    """

    steps: tuple[int, ...]
    losses: tuple[float, ...]
    images: tuple[int, ...]
    validations: tuple[tuple[int, float], ...]
    starts: tuple[Event, ...]
    skipped: int
    rate: float


def read_curve(path: Path) -> Curve:
    """The curve in the job's event log. Of a step that was redone after a resume the last value counts."""
    events, _ = read_events(path)
    progress = {
        int(e["step"]): e for e in events if e.get("event") == "progress" and _is_number(e.get("loss"))
    }
    steps = sorted(progress)
    stride = math.ceil(len(steps) / MOST_POINTS) or 1
    kept = steps[::stride] + ([steps[-1]] if steps and (len(steps) - 1) % stride else [])
    rates = sorted(float(e["images_per_s"]) for e in progress.values() if _is_number(e.get("images_per_s")))
    validations = {
        int(e["step"]): float(e["top1"])
        for e in events
        if e.get("event") == "validate" and "top1" in e  # masked patch prediction has none
    }
    return Curve(
        steps=tuple(kept),
        losses=tuple(float(progress[step]["loss"]) for step in kept),
        images=tuple(int(progress[step].get("position") or 0) for step in kept),
        validations=tuple(sorted(validations.items())),
        starts=tuple(e for e in events if e.get("event") == "start"),
        skipped=max((int(e.get("skipped") or 0) for e in progress.values()), default=0),
        rate=rates[len(rates) // 2] if rates else 0.0,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

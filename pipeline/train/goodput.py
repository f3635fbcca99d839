"""Which share of a training's time moved it forward, and what the rest went to: from its events alone.

    time ──► start     until the first step: data, self-test, engine, checkpoint
         ──► compile   what the first step of an attempt took beyond a usual one
         ──► data      steps that waited for samples
         ──► save      training stood still for a checkpoint
         ──► validate  on the way
         ──► redone    steps after the checkpoint from which a later attempt, or a rewind, went on
         ──► down      between the last word of an attempt and the start of the next
         ──► useful    the rest

Pure: a list of events of one job (events.jsonl) in, seconds out. Time that was lost to two causes counts
for one of them: what is redone is not looked into.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CAUSES = ("start", "compile", "data", "save", "validate", "redone", "down")


@dataclass(frozen=True)
class Goodput:
    """Seconds of a training over all its attempts, from its first start to its last event."""

    total_s: float
    lost_s: dict[str, float]  # cause → seconds, each of CAUSES

    @property
    def share(self) -> float:
        """What was not lost, from 0 to 1."""
        return max(0.0, 1 - sum(self.lost_s.values()) / self.total_s) if self.total_s else 0.0

    def metrics(self) -> dict[str, float]:
        """For result.json: cost/goodput, and cost/lost_CAUSE_s of each cause."""
        return {"cost/goodput": self.share} | {
            f"cost/lost_{cause}_s": seconds for cause, seconds in self.lost_s.items()
        }


def goodput(events: Sequence[dict[str, Any]]) -> Goodput | None:
    """Of one training's events in order; None before its first start."""
    # The gang's own notes are no word of an attempt: they are made while it is down, too.
    events = [event for event in events if event.get("event") != "gang"]
    starts = [event for event in events if event.get("event") == "start"]
    if not starts:
        return None
    lost = dict.fromkeys(CAUSES, 0.0)
    began = _begin(starts[0])
    ended: float | None = None  # last word of the attempt before
    at, step = 0.0, 0  # since when, and from which step, the next interval counts
    aside = 0.0  # seconds of it that went to saving and validating
    for event, back_to in zip(events, _resumed_from(events), strict=True):
        kind, time = event.get("event"), float(event["time"])
        redone = back_to < int(event.get("step", 0))
        if kind == "start":
            if ended is not None:
                lost["down"] += max(0.0, _begin(event) - ended)
            lost["start"] += time - _begin(event)
            at, step, aside = time, int(event["step"]), 0.0
        elif kind in ("checkpoint", "validate") and not redone:
            cause, name = ("save", "stall_s") if kind == "checkpoint" else ("validate", "seconds")
            seconds = float(event.get(name, 0.0))
            lost[cause] += seconds
            aside += seconds
        elif kind == "progress":
            done, seconds = int(event["step"]) - step, time - at
            if redone:
                lost["redone"] += max(0.0, seconds - aside)
            else:
                lost["data"] += max(0, done) * float(event.get("data_wait_s", 0.0))
                lost["compile"] += _beyond(event, events, done, seconds)
            at, step, aside = time, int(event["step"]), 0.0
        ended = time
    return Goodput(float(events[-1]["time"]) - began, lost)


def _begin(start: dict[str, Any]) -> float:
    """When the attempt began, which it says once it is ready."""
    return float(start["time"]) - float(start.get("startup_s", 0.0))


def _resumed_from(events: Sequence[dict[str, Any]]) -> list[float]:
    """For each event the earliest step that training went back to later on; infinity where it never did."""
    found = []
    earliest = float("inf")
    for event in reversed(events):
        found.append(earliest)
        if event.get("event") in ("start", "rewind") and "step" in event:
            earliest = min(earliest, int(event["step"]))
    return found[::-1]


def _beyond(event: dict[str, Any], events: Sequence[dict[str, Any]], done: int, seconds: float) -> float:
    """What the first step in this interval took beyond a usual step of its attempt."""
    if "first_step_s" not in event:
        return 0.0
    mine = [e for e in events if e.get("event") == "progress" and e.get("attempt") == event.get("attempt")]
    first = float(event["first_step_s"])
    rests = [(seconds - first) / (done - 1)] if done > 1 else []
    for before, after in itertools.pairwise(mine):
        steps = int(after["step"]) - int(before["step"])
        if steps > 0:
            rests.append((float(after["time"]) - float(before["time"])) / steps)
    return max(0.0, first - statistics.median(rests) - float(event.get("data_wait_s", 0.0))) if rests else 0.0

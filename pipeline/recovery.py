"""How long a gang took to come back to training.

    fault ──detect──► lost ──tear down──► ended ──start──► rank ──load──► start ──first step──► step

Read from what the gang leaves in its job's directory: its own notes in events.jsonl (`{"event": "gang",
"phase": starting | lost | ended | rank | step}`), the ranks' `start` and `stopped`, and the heartbeats. A
fault leaves no note itself: its time is the last beat of the rank that fell silent first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.events import Event, read_events
from pipeline.rundir import JobDir, read_json


@dataclass(frozen=True)
class Recovery:
    """One way back to training, in seconds; None: not known, as its driver ended too.

    Args:
        attempt: the one that trained again.
        cause: a rank was lost; all ranks had saved and stopped (a node was to go, more ranks); or the driver
            went as well.
        total_s: from the fault, or the stop, until the gradients of the first step were there.
        repeated: steps that were done again.
    """

    attempt: int
    cause: str
    total_s: float
    detect_s: float | None
    tear_down_s: float | None
    start_s: float
    load_s: float
    first_step_s: float
    repeated: int


@dataclass
class _Attempt:
    """Unix times of what one attempt left."""

    number: int = 0
    marks: dict[str, float] = field(default_factory=dict)
    first_step: int = 0
    last_step: int = 0


def recoveries(job: JobDir) -> list[Recovery]:
    """All of a job, in order."""
    found: list[Recovery] = []
    trained: _Attempt | None = None
    for attempt in _attempts(read_events(job.events)[0]):
        if "step" not in attempt.marks or "start" not in attempt.marks:
            continue  # it never trained; the one before it is still the last that did
        if trained is not None:
            found.append(_between(job, trained, attempt))
        trained = attempt
    return found


def _attempts(events: Iterable[Event]) -> list[_Attempt]:
    attempts: list[_Attempt] = []
    for event in events:
        kind = event["event"]
        if kind == "gang" and event["phase"] == "starting":
            attempts.append(_Attempt())
        if not attempts:
            continue  # not started as a gang: there are no notes
        now = attempts[-1]
        if kind == "gang":
            now.marks.setdefault(event["phase"], float(event["time"]))
        elif kind in ("start", "stopped"):
            now.marks.setdefault(kind, float(event["time"]))
        if kind == "start":
            now.number, now.first_step = int(event["attempt"]), int(event["step"])
            now.last_step = now.first_step
        elif kind in ("progress", "stopped") and event.get("attempt") == now.number:
            now.last_step = int(event["step"])
    return attempts


def _between(job: JobDir, before: _Attempt, after: _Attempt) -> Recovery:
    was, now = before.marks, after.marks
    stopped = "stopped" in was
    fault = was["stopped"] if stopped else _last_alive(job, before)
    lost, ended = was.get("lost"), was.get("ended")
    known = ended is not None
    return Recovery(
        attempt=after.number,
        cause="stopped" if stopped else "lost" if known else "driver",
        total_s=now["step"] - fault,
        detect_s=None if lost is None or stopped else lost - fault,
        tear_down_s=None if ended is None or stopped else ended - (lost or fault),
        start_s=now["rank"] - (ended or fault),
        load_s=now["start"] - now["rank"],
        first_step_s=now["step"] - now["start"],
        repeated=max(0, before.last_step - after.first_step),
    )


def _last_alive(job: JobDir, attempt: _Attempt) -> float:
    """Last beat of the rank that fell silent first."""
    logs = job.rank_log(attempt.number, 0).parent
    beats = []
    for path in logs.glob("rank-*.heartbeat"):
        try:
            beat = read_json(path)
        except ValueError:  # it was killed while writing
            continue
        if beat is not None:
            beats.append(float(beat["time"]))
    return min(beats) if beats else attempt.marks["step"]


def describe(recovery: Recovery) -> str:
    """One line for a terminal."""
    parts = [
        f"{name} {seconds:.1f}"
        for name, seconds in (
            ("detect", recovery.detect_s),
            ("tear down", recovery.tear_down_s),
            ("start", recovery.start_s),
            ("load", recovery.load_s),
            ("first step", recovery.first_step_s),
        )
        if seconds is not None
    ]
    causes = {"lost": "a rank was lost", "stopped": "it had stopped", "driver": "the driver had ended"}
    return (
        f"attempt {recovery.attempt}, as {causes[recovery.cause]}: {recovery.total_s:.1f} s until it trained"
        f" again ({', '.join(parts)}), {recovery.repeated} steps repeated"
    )

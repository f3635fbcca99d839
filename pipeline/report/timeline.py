"""What happened when: the time of every job, faults on the way, and what a training's time went to.

result.json, events.jsonl of each job ──► spans of work, incidents, goodput
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.events import Event, read_events
from pipeline.recovery import Recovery, recoveries
from pipeline.rundir import RunDir, read_json
from pipeline.train.goodput import Goodput, goodput

MOST_INCIDENTS = 40


@dataclass(frozen=True)
class Span:
    """An attempt of a job, Unix seconds."""

    stage: str
    begin: float
    end: float


@dataclass(frozen=True)
class Incident:
    """Something that went wrong, or was asked for; `is_fault` where work was lost to it."""

    stage: str
    job: str
    time: float
    what: str
    is_fault: bool


@dataclass(frozen=True)
class Timeline:
    """Spans and incidents in order of time; `goodput` and `recoveries` are the pre-training's."""

    spans: tuple[Span, ...]
    incidents: tuple[Incident, ...]
    goodput: Goodput | None  # None: nothing was pre-trained
    recoveries: tuple[Recovery, ...]

    @property
    def begin(self) -> float:
        return min(span.begin for span in self.spans)

    @property
    def end(self) -> float:
        return max(span.end for span in self.spans)


def read_timeline(run: RunDir, digests: Sequence[str]) -> Timeline:
    """Of the jobs that are done. The comparison itself is left out: it is what makes the page."""
    spans: list[Span] = []
    incidents: list[Incident] = []
    found: Goodput | None = None
    back: list[Recovery] = []
    for digest in digests:
        job, result = read_json(run.job(digest).job), run.job(digest).read_result()
        if job is None or result is None or job["stage"] == "compare":
            continue
        events, _ = read_events(run.job(digest).events)
        finished = float(result["finished"])
        begun = finished - float(result["seconds"])
        spans += _spans(job["stage"], events, begun, finished)
        incidents += _incidents(job["stage"], job["name"], events)
        if job["stage"] == "pretrain":
            found = goodput(events)
            back = recoveries(run.job(digest))
    return Timeline(
        tuple(sorted(spans, key=lambda span: span.begin)),
        tuple(sorted(incidents, key=lambda incident: incident.time)),
        found,
        tuple(back),
    )


def _spans(stage: str, events: Sequence[Event], begun: float, finished: float) -> Iterator[Span]:
    """Of each attempt that said when it started; the last one ends with the job."""
    attempts: list[list[float]] = []
    for event in events:
        time = float(event.get("time", begun))
        if event.get("event") == "start":
            attempts.append([time - float(event.get("startup_s", 0.0)), time])
        elif attempts:
            attempts[-1][1] = max(attempts[-1][1], time)
    if not attempts:
        yield Span(stage, begun, finished)
        return
    for begin, end in attempts[:-1]:
        yield Span(stage, begin, end)
    yield Span(stage, attempts[-1][0], max(finished, attempts[-1][1]))


def _incidents(stage: str, job: str, events: Sequence[Event]) -> Iterator[Incident]:
    starts = 0
    before = ""
    for event in events:
        kind = str(event.get("event"))
        what, is_fault = _told(event, starts)
        if what:
            # A rewind is followed by the warning that explains it.
            yield Incident(stage, job, float(event["time"]), what, is_fault or before == "rewind")
        starts += kind == "start"
        before = kind


def _told(event: Event, starts: int) -> tuple[str, bool]:
    """What an event means to a reader, and whether it is a fault; "" for those that are no incident."""
    kind, step = event.get("event"), event.get("step", "?")
    if kind == "start" and starts:
        return f"went on from step {step} with {event.get('world', '?')} ranks", False
    if kind == "gang" and event.get("phase") == "lost":
        return "a rank was lost", True
    if kind == "failed":
        return f"rank {event.get('rank', '?')} failed: {event.get('error', '')}", True
    if kind == "stopped":
        return f"stopped on request at step {step}", False
    if kind == "quarantine":
        number = len(event.get("samples", ()))
        return f"{number} sample{'' if number == 1 else 's'} could not be decoded, at step {step}", True
    return (str(event.get("message", "")), False) if kind == "warning" else ("", False)

"""What a person sees while a run goes on, on stderr: one line in a terminal, few lines in a log."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.events import read_events
from pipeline.graph import Planned
from pipeline.rundir import RunDir

# In a log a line is written this often; a terminal's line is drawn anew at each event.
_LOG_INTERVAL_S = 15.0
# Thousands of small jobs end faster than anybody reads.
_TICK_S = 0.25


class RunDisplay:
    """Follows the events of the running jobs.

    A terminal gets one live line, pre-training's own figures or the count of the fan-out; anything
    else (a file, a scheduler's log) gets a plain line now and then.
    """

    def __init__(self, run: RunDir, planned: list[Planned], *, quiet: bool = False) -> None:
        self._run = run
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._states = {item.digest: ("done" if item.state == "done" else "waiting") for item in planned}
        self._items = {item.digest: item for item in planned}
        self._started: dict[str, float] = {}
        self._seen: set[str] = set()
        self._offsets: dict[str, int] = {}
        self._last: dict[str, dict[str, Any]] = {}
        self._lines_printed_at = 0.0
        self._ticked_at = float("-inf")
        self._live: Live | None = None

    def __enter__(self) -> RunDisplay:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def job(self, planned: Planned, state: str, reason: str) -> None:
        """A job changed its state."""
        self._states[planned.digest] = "done" if state == "skipped" else state
        if state == "running":
            self._started[planned.digest] = time.monotonic()
            self._skip_old_events(planned.digest)
        line = self._change(planned, state, _first_line(reason))
        self._seen.add(planned.digest)
        if line is not None:
            style = {"failed": "red", "done": "green", "stopped": "yellow", "waiting": "yellow"}.get(
                state, ""
            )
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _change(self, planned: Planned, state: str, reason: str) -> str | None:
        """The line that a change is worth; small jobs are only counted while all goes well."""
        name = planned.job.name
        if state == "failed":
            return f"{name}  failed  {reason}"
        if state == "not run":
            # The line of what failed says why; at the end they are counted.
            return None
        if state == "waiting":
            # The first report of each job is the plan.
            return f"{name}  waits: {reason}" if planned.digest in self._seen else None
        if not planned.job.workers and planned.job.stage not in ("prepare", "compare"):
            return None
        if state == "done":
            started = self._started.get(planned.digest)
            took = f"  {time.monotonic() - started:.0f} s" if started else ""
            return f"{name}  done{took}" + (f"  {reason}" if reason else "")
        return f"{name}  {state}" + (f"  {reason}" if reason and planned.job.workers else "")

    def tick(self) -> None:
        """Read what the running jobs wrote and show it, some times a second."""
        if time.monotonic() - self._ticked_at < _TICK_S:
            return
        self._ticked_at = time.monotonic()
        running = [digest for digest, state in self._states.items() if state == "running"]
        for digest in running:
            self._follow(digest)
        line = self._line(running)
        if line is None:
            return
        if self._live is not None:
            self._live.update(Text(line))
        elif time.monotonic() - self._lines_printed_at >= _LOG_INTERVAL_S:
            self._lines_printed_at = time.monotonic()
            self._console.print(Text(line), soft_wrap=True)

    def _skip_old_events(self, digest: str) -> None:
        if digest not in self._offsets:
            _, self._offsets[digest] = read_events(self._run.job(digest).events)

    def _follow(self, digest: str) -> None:
        events, self._offsets[digest] = read_events(
            self._run.job(digest).events, self._offsets.get(digest, 0)
        )
        for event in events:
            if event.get("event") in ("start", "progress"):
                self._last[digest] = {**self._last.get(digest, {}), **event}
            elif event.get("event") == "start_from":
                self._console.print(f"{self._items[digest].job.name}  resumes at step {event.get('step')}")

    def _line(self, running: list[str]) -> str | None:
        gangs = [digest for digest in running if self._items[digest].job.workers and digest in self._last]
        if gangs:
            return _progress_line(self._items[gangs[0]].job.name, self._last[gangs[0]])
        fan = [digest for digest in running if self._items[digest].job.stage not in ("prepare", "pretrain")]
        if not fan:
            written = [digest for digest in running if "split" in self._last.get(digest, {})]
            return (
                "  ".join(written_line(self._items[d].job.name, self._last[d]) for d in written[:2]) or None
            )
        counts: Counter[str] = Counter()
        for digest, state in self._states.items():
            if self._items[digest].job.stage in ("choose", "finetune", "evaluate"):
                counts[state] += 1
        names = ", ".join(self._items[digest].job.name for digest in fan[:2])
        return (
            f"fan-out  {counts['done']}/{sum(counts.values())} done"
            + "".join(f", {counts[state]} {state}" for state in ("failed", "not run") if counts[state])
            + f"  running: {names}{' …' if len(fan) > 2 else ''}"
        )


def _first_line(text: str) -> str:
    """Of a message in three parts the first; the whole stands in the log and at the end."""
    return text.split("\n", 1)[0]


def _progress_line(name: str, event: dict[str, Any]) -> str:
    step, steps = event.get("step", 0), event.get("steps", 0)
    if "loss" not in event:
        return f"{name}  starts at step {step} of {steps}"
    return (
        f"{name}  step {step:,}/{steps:,}  loss {event['loss']:.4f}  {event['images_per_s']:,.0f} images/s"
        f"  lr {event['lr']:.2e}  position {event['position']:,} (epoch {event['epoch']:.2f})"
        f"{_measured(event)}  {_duration(event['eta_s'])} left"
    )


def _measured(event: dict[str, Any]) -> str:
    """What else the event says of its steps; docs/metrics.md has the meanings."""
    shown = (
        ("grad_norm", "  gradient {:.2g}"),
        ("update_ratio", "  update {:.1e}"),
        ("mfu", "  MFU {:.1%}"),
        ("data_wait_s", "  data wait {:.3f} s"),
        ("communication", "  communication {:.0%}"),
        ("memory_mib", "  memory {:,.0f} MiB"),
    )
    return "".join(text.format(event[name]) for name, text in shown if event.get(name) is not None)


def written_line(name: str, event: dict[str, Any]) -> str:
    """How far a dataset is; see pipeline/data/progress.py."""
    total, left = event.get("total"), event.get("eta_s")
    return (
        f"{name}  {event['split']} {event['done']:,}{f'/{total:,}' if total else ''} images"
        f"  {event['images_per_s']:,.0f} images/s" + (f"  {_duration(left)} left" if left is not None else "")
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"

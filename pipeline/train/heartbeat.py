"""Where each rank is, for whoever wonders why nothing moves.

    logs/attempt-0001/rank-00000.heartbeat    {"step": 12, "phase": "data", "time": 1795517436.1}

Every rank rewrites its file at each phase of a step. A thread in each rank looks at the clock: without a
beat for `stall_s` it writes the Python stacks of its process to the rank's log, and on rank 0 it also
reads the other ranks' files and says which rank holds up the rest, and in which phase.
"""

from __future__ import annotations

import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# In the order of a step: of two ranks at one step, the one in the earlier phase holds up the other.
PHASES = ("data", "compute", "agree", "update", "save", "validate", "export")
_WIDTH = 96  # bytes of a heartbeat file, always the same, so that a reader never sees half


class Heartbeat:
    """Beats of one rank; used as a context, which owns the thread."""

    def __init__(self, log: Path, rank: int, size: int, stall_s: float, warn: Callable[[str], None]) -> None:
        """
        Args:
            log: this rank's log; the heartbeat file lies beside it.
            stall_s: seconds without a beat after which stacks are dumped.
            warn: told on rank 0 who holds up the rest.
        """
        self._log = log
        self._rank, self._size = rank, size
        self._stall_s = stall_s
        self._warn = warn
        self._last = time.monotonic()
        self._dumped = False
        self._ended = threading.Event()
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(log.with_suffix(".heartbeat"), os.O_WRONLY | os.O_CREAT, 0o640)
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)

    def __call__(self, phase: str, step: int) -> None:
        """This rank enters `phase` of the step after `step` steps."""
        assert phase in PHASES, f"unknown phase {phase}"
        text = json.dumps({"step": step, "phase": phase, "time": round(time.time(), 3)})
        os.pwrite(self._file, text.ljust(_WIDTH - 1).encode() + b"\n", 0)
        self._last, self._dumped = time.monotonic(), False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._file)

    def _watch(self) -> None:
        while not self._ended.wait(min(self._stall_s / 4, 5.0)):
            if self._dumped or time.monotonic() - self._last < self._stall_s:
                continue
            self._dumped = True
            with self._log.open("a") as file:
                file.write(f"no step for {self._stall_s:g} s; Python stacks:\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
            if self._rank == 0:
                self._warn(self._culprit())

    def _culprit(self) -> str:
        beats = [read_heartbeat(self._log.with_name(f"rank-{rank:05d}.log")) for rank in range(self._size)]
        return describe_stall(beats, self._stall_s)


def read_heartbeat(log: Path) -> dict[str, Any] | None:
    """The last beat of the rank with this log; None before its first."""
    try:
        beat: dict[str, Any] = json.loads(log.with_suffix(".heartbeat").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return beat


def describe_stall(beats: list[dict[str, Any] | None], stall_s: float) -> str:
    """One sentence: which ranks hold up the rest, and where."""
    places = {
        rank: (-1, -1) if beat is None else (beat["step"], PHASES.index(beat["phase"]))
        for rank, beat in enumerate(beats)
    }
    behind = min(places.values())
    ranks = [rank for rank, place in places.items() if place == behind]
    where = "not started" if behind[0] < 0 else f"in phase {PHASES[behind[1]]!r} after step {behind[0]}"
    named = "all ranks are" if len(ranks) == len(beats) else f"the others wait for rank {ranks}, which is"
    return f"no step for {stall_s:g} s; {named} {where}; stacks are in each rank's log"

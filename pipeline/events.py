"""Append and follow JSON lines: the log that all parts of a run write and the driver reads.

An event is one JSON object on one line: `{"event": KIND, "time": UNIX_SECONDS, ...}`. Writers append
whole lines with one `write`, so lines of several processes never mix. The log is the truth of a run;
MLflow is a mirror of it (see pipeline/tracking.py). Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class EventLog:
    """Appends events to one file; opened at the first event, flushed at each."""

    def __init__(self, path: Path, **common: Any) -> None:
        """`common` is added to every event, for instance the attempt's number."""
        self.path = path
        self.common = common
        self._descriptor: int | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Append one event; `time` is filled in when it is not there."""
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
            self._end_torn_line()
        line = json.dumps({"time": time.time(), **self.common, **event}, allow_nan=True) + "\n"
        os.write(self._descriptor, line.encode())

    def _end_torn_line(self) -> None:
        """A writer that was killed may have left half a line; a newline keeps ours whole."""
        assert self._descriptor is not None
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":
                    os.write(self._descriptor, b"\n")

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Events of `path` from byte `offset` on, and the offset to go on from.

    A last line without its newline is left for the next call. A line that is not JSON (torn by a
    kill) is skipped. A file that is not there has no events.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return list(_parse(data[:end])), offset + end


def _parse(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event

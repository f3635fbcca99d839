"""How far a command is that goes through a dataset: one line on stderr, drawn anew in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from launch.display import written_line

_LOG_INTERVAL_S = 15.0  # in a log


class LineOfProgress:
    """Prints the events of pipeline/data/progress.py."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._printed_at = time.monotonic()

    def __call__(self, event: Mapping[str, Any]) -> None:
        line = written_line(self._name, dict(event))
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._printed_at >= _LOG_INTERVAL_S:
            self._printed_at = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> LineOfProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

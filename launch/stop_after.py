"""`--stop-after 3h50m`: a run that stops in order by itself, before whoever lent the machines ends it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UserError
from pipeline.train.stopping import seconds_in


def span_s(text: str) -> int:
    """Seconds of `3h50m`, `90m`, `1d`, `45s`.

    Raises:
        UserError: it is none of these, or no time at all.
    """
    try:
        seconds = int(seconds_in(text.strip(), "dhms"))
    except ValueError:
        seconds = 0
    if not seconds:
        raise UserError(
            f"--stop-after {text!r}",
            "a time with units: days, hours, minutes, seconds",
            "write it as 3h50m, 90m or 1d12h",
        )
    return seconds


@contextmanager
def stopping_after(seconds: float | None, stop: threading.Event) -> Iterator[None]:
    """Sets `stop`, as a first SIGTERM would, when so long has passed in the block; None: never."""
    if seconds is None:
        yield
        return

    def ask() -> None:
        print("stopping, as --stop-after asked: running jobs save and end", file=sys.stderr)
        stop.set()

    timer = threading.Timer(max(0.0, seconds), ask)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()

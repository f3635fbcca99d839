"""Long work on a dataset: how it is spread over processes, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Report = Callable[[Mapping[str, Any]], None]

Run = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""As `map`: applies a function, which can be pickled, to each task, and gives the results in order."""

_REPORT_S = 0.5


class Progress:
    """Reports how far a split is, at most twice a second:

    {"event": "progress", "split", "done", "total" (None: not known), "images_per_s", "eta_s"}.
    """

    def __init__(self, split: str, total: int | None, report: Report) -> None:
        self._split, self._total, self._report = split, total, report
        self._done, self._start, self._last = 0, time.monotonic(), 0.0

    def add(self, count: int) -> None:
        self._done += count
        if time.monotonic() - self._last >= _REPORT_S:
            self.end()

    def end(self) -> None:
        self._last = time.monotonic()
        rate = self._done / max(self._last - self._start, 1e-9)
        self._report(
            {
                "event": "progress",
                "split": self._split,
                "done": self._done,
                "total": self._total,
                "images_per_s": rate,
                "eta_s": (self._total - self._done) / rate if self._total and rate else None,
            }
        )

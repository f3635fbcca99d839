"""Batches that a training leaves out: windows of batch numbers, in the order of the data.

    batches   0 1 2 3 4 5 6 7 8 9 …
    skipped         [3 4 5]               one window, first 3, end 6
    step      0 1 2       3 4 5 6 …       the batch of step 3 is 6

Which batch a step takes is arithmetic over the windows, so it is the same on any number of ranks and after
any resume. Windows come from health.loss_not_finite: rewind.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Skips:
    """`windows`: [first, end) in batches, rising, apart from each other."""

    windows: tuple[tuple[int, int], ...] = ()

    def batch(self, step: int) -> int:
        """Number of the batch that step `step` takes; both are counted from 0."""
        batch = step
        for first, end in self.windows:
            if batch < first:
                break
            batch += end - first
        return batch

    def with_windows(self, more: Iterable[Sequence[int]]) -> Skips:
        """These windows and `more`; those that overlap or touch become one."""
        merged: list[list[int]] = []
        for first, end in sorted((int(w[0]), int(w[1])) for w in [*self.windows, *more]):
            if merged and first <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([first, end])
        return Skips(tuple((first, end) for first, end in merged))

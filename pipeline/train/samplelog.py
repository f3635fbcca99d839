"""Which samples each step used: written by every rank, read as one log of the whole run.

    samples/attempt-0001/rank-00000.jsonl     {"step": 1, "ids": [17, 4, …]}
                                              {"step": 2, "ids": […]}
                                              {"rewind": 1, "left_out": [1, 2]}
                                              {"step": 2, "ids": […]}

Steps are counted from 1, as in the events: step t consumed batch t - 1. Lines are appended once the
update was made. A batch's ids are those of rank 0, rank 1, … one after the other, which is the same list
for any number of ranks. An attempt that resumed after step s begins with step s + 1, and from there on
its lines count, not those of the attempts before. The same holds after a rewind to step s within an
attempt (rewinding.py); the batches that it left out, counted from 0, stand in its line.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from pipeline.rundir import JobDir


class SampleLog:
    """Appends the ids of one rank in one attempt."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def write(self, step: int, ids: torch.Tensor) -> None:
        """One line, written whole by one call, so that a kill leaves at most the last one torn."""
        line = json.dumps({"step": step, "ids": ids.tolist()}, separators=(",", ":")) + "\n"
        os.write(self._descriptor, line.encode())

    def rewind(self, step: int, first: int, end: int) -> None:
        """Training went back to `step` steps done; batches first … end-1 are left out from now on."""
        line = json.dumps({"rewind": step, "left_out": [first, end]}, separators=(",", ":")) + "\n"
        os.write(self._descriptor, line.encode())

    def close(self) -> None:
        os.close(self._descriptor)


def read_sample_log(job: JobDir) -> dict[int, list[int]]:
    """Step number → sample ids of its whole batch, over all ranks and attempts of a job."""
    steps: dict[int, list[int]] = {}
    for attempt in sorted((job.path / "samples").glob("attempt-*")):
        ranks = [_read(path) for path in sorted(attempt.glob("rank-*.jsonl"))]
        first = min((min(rank) for rank in ranks if rank), default=None)
        if first is None:  # ended before its first step
            continue
        steps = {step: ids for step, ids in steps.items() if step < first}
        # A step that not all ranks have logged was not finished by all; the next attempt redoes it.
        finished = set.intersection(*(set(rank) for rank in ranks))
        steps |= {step: [x for rank in ranks for x in rank[step]] for step in sorted(finished)}
    return dict(sorted(steps.items()))


def _read(path: Path) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        if "rewind" in entry:
            found = {step: ids for step, ids in found.items() if step <= entry["rewind"]}
        else:
            found[int(entry["step"])] = entry["ids"]
    return found

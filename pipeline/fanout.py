"""Many small jobs: each a Ray task of its own that runs the whole job in a warm worker process.

The driver submits, polls and decides; a failed job touches no other. A stop is asked for by the job's
stop file, because cancelling a Ray task does not reach one that waits.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

from pipeline.errors import StopRequested, VitlineError
from pipeline.graph import Outcome, Planned


class Fanout:
    """Tasks under way, by digest."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._tasks: dict[Any, str] = {}
        # Ray's own retries are off: the driver retries by kind of error and counts.
        self._remote = ray.remote(max_retries=0)(_run)

    def submit(self, planned: Planned) -> None:
        job = planned.job
        task = self._remote.options(num_cpus=job.cpus, num_gpus=job.gpus, name=job.name).remote(
            str(self._run_dir.resolve()), planned.digest
        )
        self._tasks[task] = planned.digest

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of the tasks that ended; waits at most `timeout_s` for the first."""
        if not self._tasks:
            return []
        ended, _ = ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        return [_outcome(task, self._tasks.pop(task)) for task in ended]


def _run(run_dir: str, digest: str) -> None:
    # Imported where the work is done; the driver needs no PyTorch.
    from pipeline.stages.execute import execute

    execute(Path(run_dir), digest)


def _plain(text: str) -> str:
    """Without the colours that Ray puts into its messages."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _outcome(task: Any, digest: str) -> Outcome:
    try:
        ray.get(task)
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, StopRequested):
            return Outcome(digest=digest, stopped=True)
        if isinstance(cause, VitlineError):
            return Outcome(digest=digest, error=str(cause), fault=cause, retry=cause.retry)
        return Outcome(digest=digest, error=_plain(str(error)), retry=False)
    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
        return Outcome(digest=digest, error=str(error), retry=True)
    return Outcome(digest=digest)

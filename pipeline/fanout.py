"""Many small jobs: each a Ray task of its own that runs the whole job in a warm worker process. A job that
consists of many alike parts spreads them over the cluster as tasks of their own.

The driver submits, polls and decides; a failed job touches no other. A stop is asked for by the job's
stop file, because cancelling a Ray task does not reach one that waits.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.errors import StopRequested, VitlineError
from pipeline.graph import Outcome, Planned
from pipeline.preemption import notice

_CALL_RETRIES = 3
_CALLS_PER_CPU = 2  # so that no CPU waits for the driver of the calls


class Fanout:
    """Tasks under way, by digest."""

    def __init__(self, run_dir: Path, work: Callable[[str, str], None] | None = None) -> None:
        """`work`: what a task does with run directory and digest; default: the job."""
        self._run_dir = str(run_dir.resolve())
        self._tasks: dict[Any, str] = {}
        # Ray's own retries are off: the driver retries by kind of error and counts.
        self._remote = ray.remote(max_retries=0)(work or _run)

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def submit(self, planned: Planned) -> None:
        job = planned.job
        task = self._remote.options(num_cpus=job.cpus, num_gpus=job.gpus, name=job.name).remote(
            self._run_dir, planned.digest
        )
        self._tasks[task] = planned.digest

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Outcomes of the tasks that ended; waits at most `timeout_s` for the first."""
        if not self._tasks:
            return []
        ended, others = ray.wait(list(self._tasks), num_returns=1, timeout=timeout_s)
        if ended and others:
            # Whatever else has ended by now, so that a decision is made once for all of it.
            ended += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [_outcome(task, self._tasks.pop(task)) for task in ended]


def _run(run_dir: str, digest: str) -> None:
    # Imported where the work is done; the driver needs no PyTorch.
    from pipeline.stages.execute import execute

    with notice() as leaving:
        execute(Path(run_dir), digest, leaving, spread)


def spread(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """As `map`, over the cluster: each call is a Ray task of one CPU, results come in order.

    Called inside a job, which gives its own CPU back while it waits; so a cluster of one CPU can do it too.
    A call that dies with its process or node is made again: it must be one that can be repeated. The first
    fault of a call is raised here, as itself, and calls that have not begun are dropped.
    """
    if len(items) < 2:
        yield from map(function, items)
        return
    remote = ray.remote(num_cpus=1, max_retries=_CALL_RETRIES, scheduling_strategy="SPREAD")(_call)
    kept, waiting = ray.put(function), iter(items)
    window = _CALLS_PER_CPU * max(1, int(ray.cluster_resources().get("CPU", 1)))
    calls = deque(remote.remote(kept, item) for item in islice(waiting, window))
    try:
        while calls:
            yield _result(calls.popleft())
            calls.extend(remote.remote(kept, item) for item in islice(waiting, 1))
    finally:
        for call in calls:
            ray.cancel(call)


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _result(call: Any) -> Any:
    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, VitlineError):
            raise error.cause from None
        raise


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
    except RayError as error:
        # Not the task's own: its process or node is gone, or memory was short.
        return Outcome(digest=digest, error=_plain(str(error)), retry=True)
    return Outcome(digest=digest)

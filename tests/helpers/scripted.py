"""An executor whose jobs end as a test says, one at a time, on a clock that moves a second with each end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.admission import Resources
from pipeline.graph import Outcome, Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from pipeline.workload import Workload
from tests.helpers.synthetic_run import synthetic_config


class Scripted:
    """`ends`: digest → how its attempts end, the first one first; what is not named is done at once."""

    def __init__(self, ends: Mapping[str, Sequence[Outcome]] | None = None, cpus: float = 64) -> None:
        self._ends = {digest: list(outcomes) for digest, outcomes in (ends or {}).items()}
        self._cluster = [{"CPU": cpus, "GPU": 0.0}]
        self._running: list[str] = []
        self._asked: set[str] = set()
        self._now = 0.0
        self.started: list[str] = []

    @contextmanager
    def connected(self) -> Iterator[None]:
        yield

    def nodes(self) -> list[Resources]:
        return list(self._cluster)

    def now(self) -> float:
        return self._now

    def cost(self, item: Planned) -> float:
        return item.job.cost

    def start(self, item: Planned) -> None:
        self._running.append(item.digest)
        self.started.append(item.digest)

    def ask_to_stop(self, digest: str) -> None:
        self._asked.add(digest)

    def poll(self, timeout_s: float) -> list[Outcome]:
        self._now += 1
        digest = self._running.pop(0)
        if digest in self._asked:
            return [Outcome(digest=digest, stopped=True)]
        ends = self._ends.get(digest)
        return [ends.pop(0) if ends else Outcome(digest=digest)]


class Watched:
    """A workload, with what it reported: (name, state, reason) in order."""

    def __init__(self, root: Path, executor: Scripted, stop: threading.Event | None = None) -> None:
        config = synthetic_config(root)
        run = RunDir(root / config.name)
        self.reports: list[tuple[str, str, str]] = []
        self.work = Workload(
            config,
            run,
            executor,
            Lease(run.lease),
            stop or threading.Event(),
            set(),
            lambda item, state, reason: self.reports.append((item.job.name, state, reason)),
            lambda: None,
        )

    def of(self, name: str) -> list[str]:
        return [state for reported, state, _ in self.reports if reported == name]

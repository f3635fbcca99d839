"""The jobs of one command that run on the cluster: starts them, and decides what each outcome means.

    waiting ──► running ──► done
       ▲           ├──────► failed        for good; what needs it fails with it
       ├───────────┤        tried again   when another attempt can help, within the budget
       └───────────┘        stopped       asked for, or to come back with more ranks

Without its data or its pre-training the rest of a run has no purpose: a failure there ends the workload
(`fault`). Any other failure touches only what needs the job.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from pipeline import admission
from pipeline.config import RunConfig
from pipeline.errors import EnvironmentUnfit, JobsFailed, VitlineError
from pipeline.graph import Outcome, Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from pipeline.stages import prepare, pretrain
from pipeline.stages.catalog import write_job

if TYPE_CHECKING:
    from pipeline.fanout import Fanout
    from pipeline.gang import Gang

_POLL_S = 0.2
_GROW_INTERVAL_S = 10.0
_TRUNK = (prepare.STAGE, pretrain.STAGE)


class Workload:
    """What is waiting, running, done (names) and failed (name → error)."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        lease: Lease,
        stop: threading.Event,
        done: set[str],
        report: Callable[[Planned, str, str], None],
        tick: Callable[[], None],
    ) -> None:
        self.done = done
        self.failed: dict[str, str] = {}
        self.fault: VitlineError | None = None
        self._config, self._run, self._lease, self._stop = config, run, lease, stop
        self._report, self._tick = report, tick
        self._waiting: list[Planned] = []
        self._running: dict[str, Planned] = {}  # digest → the job, a gang with the ranks it has now
        self._whole: dict[str, Planned] = {}  # digest → the job with the ranks it asks for
        self._failures: dict[str, int] = {}  # digest → attempts that failed
        self._lacking_since: float | None = None
        self._looked_to_grow_at = time.monotonic()

    def do(self, items: Iterable[Planned], resources: Callable[[], Mapping[str, float]]) -> None:
        """Run `items` until nothing can go on; `resources` says what the cluster has now.

        Raises:
            EnvironmentUnfit: a job does not fit into the whole cluster, and did not for `cluster.wait_s`.
            Busy: another driver took the run over.
        """
        # Imports Ray, which is not needed where nothing is due.
        from pipeline.fanout import Fanout

        self._waiting = list(items)
        fanout = Fanout(self._run.path)
        gangs: dict[str, Gang] = {}
        while True:
            self._lease.check()
            self._fail_orphans()
            if self._stop.is_set() or self.fault:
                self._ask_to_stop(self._running)
            else:
                total = resources()
                self._start_what_fits(total, fanout, gangs)
                self._check_lack(total)
                self._grow(total)
            if not self._running and (self._stop.is_set() or self.fault or not self._waiting):
                return
            outcomes = list(fanout.poll(_POLL_S))
            outcomes += [outcome for gang in gangs.values() if (outcome := gang.poll()) is not None]
            for outcome in outcomes:
                gangs.pop(outcome.digest, None)
                self._finish(outcome)
            if not outcomes:
                time.sleep(_POLL_S)
            self._tick()

    # ---------------------------------------------------------------- starting

    def _start_what_fits(self, total: Mapping[str, float], fanout: Fanout, gangs: dict[str, Gang]) -> None:
        # Imports Ray Train.
        from pipeline.gang import Gang

        for item in admission.startable(self._waiting, self.done, self._running.values(), total):
            if not self._start(item):
                continue
            if item.job.workers:
                gangs[item.digest] = Gang(self._run.path, item)
            else:
                fanout.submit(item)

    def _start(self, item: Planned) -> bool:
        """Describe the job on disk; False where its inputs turn out not to allow it."""
        whole = next(other for other in self._waiting if other.digest == item.digest)
        self._waiting.remove(whole)
        self._run.job(item.digest).stop.unlink(missing_ok=True)
        try:
            write_job(self._config, self._run, item)
        except VitlineError as error:
            self._fail(item, str(error))
            return False
        self._running[item.digest], self._whole[item.digest] = item, whole
        ranks = f", {item.job.workers} ranks" if item.job.workers else ""
        self._report(item, "running", f"attempt {self._failures.get(item.digest, 0) + 1}{ranks}")
        return True

    def _check_lack(self, total: Mapping[str, float]) -> None:
        """Wait for a cluster that is too small, and say so; not for ever."""
        lack = admission.lacking(self._waiting, total)
        if lack is None:
            self._lacking_since = None
            return
        item, sentence = lack
        if self._lacking_since is None:
            self._lacking_since = time.monotonic()
            self._report(item, "waiting", f"{sentence}; waiting for more of it")
        # A cluster of this machine alone does not grow.
        wait_s = self._config.cluster.wait_s if self._config.cluster.address else 0.0
        if time.monotonic() - self._lacking_since >= wait_s:
            raise EnvironmentUnfit(
                sentence,
                "a cluster that holds every job",
                "lower pretrain.gang.workers or what each takes, or use a larger cluster",
            )

    def _grow(self, total: Mapping[str, float]) -> None:
        """Have a gang that could have more ranks save and come back with them."""
        if time.monotonic() - self._looked_to_grow_at < _GROW_INTERVAL_S:
            return
        self._looked_to_grow_at = time.monotonic()
        for digest, item in self._running.items():
            if item.job.workers:
                others = [other for other in self._running.values() if other is not item]
                size = admission.size_for(self._whole[digest], admission.free(total, others))
                if size > item.job.workers and not self._run.job(digest).stop.exists():
                    self._report(item, "running", f"grows from {item.job.workers} to {size} ranks")
                    self._ask_to_stop([digest])

    # ---------------------------------------------------------------- ending

    def _finish(self, outcome: Outcome) -> None:
        item = self._running.pop(outcome.digest)
        if outcome.stopped:
            self._waiting.append(self._whole[item.digest])
            self._report(item, "stopped", "with a checkpoint" if item.job.workers else "")
        elif outcome.error is None:
            self.done.add(item.job.name)
            result = self._run.job(item.digest).read_result() or {}
            self._report(item, "done", str(result.get("outputs", {}).get("note", "")))
        else:
            self._failed_attempt(item, outcome, outcome.error)

    def _failed_attempt(self, item: Planned, outcome: Outcome, error: str) -> None:
        failures = self._failures[item.digest] = self._failures.get(item.digest, 0) + 1
        gang, fanout = self._config.pretrain.gang, self._config.fanout
        budget = gang.max_failures if item.job.workers else fanout.retries
        if outcome.retry and failures <= budget and not self._stop.is_set():
            self._waiting.append(self._whole[item.digest])
            self._report(item, "waiting", error)
            return
        self._fail(item, error)
        if item.job.stage in _TRUNK and self.fault is None:
            self.fault = outcome.fault or JobsFailed(
                f"{item.job.name} failed: {error}",
                "prepared data and a finished pre-training, which all else needs",
                f"see {self._run.job(item.digest).path}/logs, mend it and run again",
            )

    def _fail_orphans(self) -> None:
        for item, reason in admission.orphans(self._waiting, self.failed):
            self._waiting.remove(item)
            self._fail(item, reason)

    def _fail(self, item: Planned, error: str) -> None:
        self.failed[item.job.name] = error
        self._report(item, "failed", error)

    def _ask_to_stop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            self._run.job(digest).stop.touch()

"""The jobs of one command that run on the cluster: starts them, and decides what each outcome means.

    waiting ──► running ──► done
       ▲           ├──────► failed        for good; what needs it is not run
       ├───────────┤        tried again   when another attempt can help, within the budget
       └───────────┘        stopped       asked for, or to come back with more ranks

Without the data of its pre-training, or the pre-training itself, the rest of a run has no purpose: a failure
there ends the workload (`fault`). Any other failure, a transfer dataset's too, touches only what needs the
job. Nothing here knows Ray or waits by itself: that is the executor's (pipeline/executor.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pipeline import admission
from pipeline.config import RunConfig
from pipeline.errors import EnvironmentUnfit, JobsFailed, VitlineError
from pipeline.executor import Executor
from pipeline.graph import Outcome, Planned
from pipeline.jobqueue import JobQueue
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from pipeline.stages import prepare, pretrain

_POLL_S = 0.2
_GROW_INTERVAL_S = 10.0


class Workload:
    """What is done (names), failed (name → error) and not run as its input is missing (name → the job that
    failed), and what waits and runs."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        executor: Executor,
        lease: Lease,
        stop: threading.Event,
        done: set[str],
        report: Callable[[Planned, str, str], None],
        tick: Callable[[], None],
    ) -> None:
        self.done = done
        self.failed: dict[str, str] = {}
        self.not_run: dict[str, str] = {}
        self.fault: VitlineError | None = None
        self._config, self._run, self._lease, self._stop = config, run, lease, stop
        self._trunk = {pretrain.STAGE, *map(prepare.job_name, config.pretrain.shares)}
        self._executor = executor
        self._report, self._tick = report, tick
        self._waiting = JobQueue((), done, executor.cost)
        self._running: dict[str, Planned] = {}  # digest → the job, a gang with the ranks it has now
        self._whole: dict[str, Planned] = {}  # digest → the job with the ranks it asks for
        self._used: admission.Resources = {"CPU": 0.0, "GPU": 0.0}  # by all that runs
        self._asked: set[str] = set()  # digests of running jobs that were asked to stop
        self._attempts: dict[str, int] = {}  # digest → attempts that began
        self._failures: dict[str, int] = {}  # digest → failures since it last got on
        self._preemptions: dict[str, int] = {}  # digest → attempts whose node was taken away
        self._fitting: list[admission.Resources] | None = None  # nodes that hold every waiting job
        self._lacking_since: float | None = None
        self._looked_to_grow_at = executor.now()

    def do(self, items: Iterable[Planned]) -> None:
        """Run `items` until nothing can go on.

        Raises:
            EnvironmentUnfit: a job does not fit into the whole cluster, and did not for `cluster.wait_s`.
            Busy: another driver took the run over.
        """
        self._waiting = JobQueue(items, self.done, self._executor.cost)
        while True:
            self._lease.check()
            ending = self._stop.is_set() or self.fault is not None
            if ending:
                self._ask_to_stop(self._running)
            else:
                nodes = self._executor.nodes()
                self._start_what_fits(nodes)
                self._check_lack(nodes)
                self._grow(nodes)
            if not self._running and (ending or not self._waiting):
                return
            for outcome in self._executor.poll(_POLL_S):
                self._finish(outcome)
            self._tick()

    # ---------------------------------------------------------------- starting

    def _start_what_fits(self, nodes: list[admission.Resources]) -> None:
        whole = admission.total(nodes)
        room = admission.less(whole, self._used)
        for item in self._waiting.startable(admission.less(room, self._kept_to_grow(whole))):
            self._start(item)

    def _kept_to_grow(self, whole: admission.Resources) -> admission.Resources:
        """What gangs with fewer ranks than the cluster could hold lack: else small jobs took every device
        that comes free, and a gang that lost one node would stay at its next smaller size to the end."""
        kept: admission.Resources = {"CPU": 0.0, "GPU": 0.0}
        for digest, item in self._running.items():
            if item.job.workers and item.job.workers < max(item.job.sizes):
                missing = admission.size_for(self._whole[digest], whole) - item.job.workers
                if missing > 0:
                    kept = admission.more(kept, admission.needs(admission.of_size(item, missing)))
        return kept

    def _start(self, item: Planned) -> None:
        whole = self._waiting.take(item.digest)
        try:
            self._executor.start(item)
        except VitlineError as error:
            self._fail(item, str(error), error)
            return
        self._running[item.digest], self._whole[item.digest] = item, whole
        self._used = admission.more(self._used, admission.needs(item))
        attempt = self._attempts[item.digest] = self._attempts.get(item.digest, 0) + 1
        ranks = f", {item.job.workers} ranks" if item.job.workers else ""
        self._report(item, "running", f"attempt {attempt}{ranks}")

    def _check_lack(self, nodes: list[admission.Resources]) -> None:
        """Wait for a cluster that is too small, and say so; not for ever."""
        if nodes == self._fitting:
            return
        lack = admission.lacking(self._waiting, nodes)
        if lack is None:
            self._lacking_since, self._fitting = None, list(nodes)
            return
        item, sentence = lack
        if self._lacking_since is None:
            self._lacking_since = self._executor.now()
            self._report(item, "waiting", f"{sentence}; waiting for more of it")
        # A cluster of this machine alone does not grow.
        wait_s = self._config.cluster.wait_s if self._config.cluster.address else 0.0
        if self._executor.now() - self._lacking_since >= wait_s:
            raise EnvironmentUnfit(
                sentence,
                "a cluster that holds every job",
                "lower pretrain.gang.workers or what each takes, or use a larger cluster",
            )

    def _grow(self, nodes: list[admission.Resources]) -> None:
        """Have a gang that could have more ranks save and come back with them."""
        if self._executor.now() - self._looked_to_grow_at < _GROW_INTERVAL_S:
            return
        self._looked_to_grow_at = self._executor.now()
        room = admission.less(admission.total(nodes), self._used)
        for digest, item in self._running.items():
            if item.job.workers and digest not in self._asked:
                own = admission.more(room, admission.needs(item))
                size = admission.size_for(self._whole[digest], own)
                if size > item.job.workers:
                    self._report(item, "running", f"grows from {item.job.workers} to {size} ranks")
                    self._ask_to_stop([digest])

    # ---------------------------------------------------------------- ending

    def _finish(self, outcome: Outcome) -> None:
        item = self._running.pop(outcome.digest)
        self._used = admission.less(self._used, admission.needs(item))
        asked = outcome.digest in self._asked
        self._asked.discard(outcome.digest)
        if outcome.preempted or (outcome.stopped and not asked):
            self._taken_away(item, outcome)
        elif outcome.stopped:
            self._waiting.put_back(self._whole[item.digest])
            self._report(item, "stopped", "with a checkpoint" if item.job.workers else "")
        elif outcome.error is None:
            self.done.add(item.job.name)
            self._waiting.finished(item.job.name)
            self._report(item, "done", outcome.note)
        else:
            self._failed_attempt(item, outcome, outcome.error)

    def _taken_away(self, item: Planned, outcome: Outcome) -> None:
        """Go on elsewhere, as often as it takes: that a node goes says nothing about the job."""
        times = self._preemptions[item.digest] = self._preemptions.get(item.digest, 0) + 1
        self._waiting.put_back(self._whole[item.digest])
        self._report(item, "stopped", f"preempted (time {times}): {outcome.error or 'its node is to go'}")

    def _failed_attempt(self, item: Planned, outcome: Outcome, error: str) -> None:
        # A long training meets more faults than any budget; what counts is whether it gets on between them.
        before = 0 if outcome.progressed else self._failures.get(item.digest, 0)
        failures = self._failures[item.digest] = before + 1
        gang, fanout = self._config.pretrain.gang, self._config.fanout
        budget = gang.max_failures if item.job.workers else fanout.retries
        if outcome.retry and failures <= budget and not self._stop.is_set():
            self._waiting.put_back(self._whole[item.digest])
            self._report(item, "waiting", error)
            return
        self._fail(item, error, outcome.fault)

    def _fail(self, item: Planned, error: str, fault: VitlineError | None) -> None:
        """Give a job up for good; all that needs it cannot run."""
        name = item.job.name
        self.failed[name] = error
        self._report(item, "failed", error)
        self._leave_out(name, name)
        if name in self._trunk and self.fault is None:
            self.fault = fault or JobsFailed(
                f"{name} failed: {error}",
                "prepared data and a finished pre-training, which all else needs",
                f"see {self._run.job(item.digest).path}/logs, mend it and run again",
            )

    def _leave_out(self, name: str, failed: str) -> None:
        """Whatever needs the job `name`, which `failed` or is left out itself."""
        for follower in self._waiting.failed(name):
            self.not_run[follower.job.name] = failed
            self._report(follower, "not run", f"needs {failed}, which failed")
            self._leave_out(follower.job.name, failed)

    def _ask_to_stop(self, digests: Iterable[str]) -> None:
        for digest in digests:
            if digest not in self._asked:
                self._asked.add(digest)
                self._executor.ask_to_stop(digest)

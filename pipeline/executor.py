"""Where jobs run: what the driver asks of it, and Ray's answer.

    Workload ──► Executor ─┬─ RayExecutor ─┬─ Fanout   one task a job
                           │               └─ Gang     many ranks a job
                           └─ any other, with a clock of its own

Time passes only here: the driver waits in `poll` and asks `now`, and nothing above knows Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.admission import Resources
from pipeline.cluster import THIS_MACHINE, check_reach, connect
from pipeline.config import RunConfig
from pipeline.graph import Outcome, Planned
from pipeline.nodewatch import NodeWatch
from pipeline.rundir import JobDir, RunDir
from pipeline.stages.catalog import write_job
from pipeline.stages.cost import CostEstimate

if TYPE_CHECKING:
    from pipeline.fanout import Fanout
    from pipeline.gang import Gang


class Executor(Protocol):
    def connected(self) -> AbstractContextManager[None]:
        """The cluster is there for the time of a `with` block."""

    def nodes(self) -> list[Resources]:
        """What each living node has, busy or not. Raises ClusterLost when nobody says so any more."""

    def now(self) -> float:
        """Seconds of a clock that only goes forward."""

    def cost(self, item: Planned) -> float:
        """How long a job will take whose inputs are done, to start the longest first; any unit."""

    def start(self, item: Planned) -> None:
        """Raises VitlineError where its inputs turn out not to allow it."""

    def ask_to_stop(self, digest: str) -> None:
        """Have a running job save and end."""

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Attempts that ended; waits at most `timeout_s` for the first. Raises ClusterLost."""


class RayExecutor:
    """Jobs as Ray tasks and gangs; their files lie in the run's directory.

    Args:
        describe: writes job.json; default: as its stage says.
        work: what a task does with run directory and digest; default: the job (pipeline/stages/execute.py).
        before_gang: called with each gang that is about to start, and the nodes; may refuse it.
    """

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        describe: Callable[[Planned], None] | None = None,
        work: Callable[[str, str], None] | None = None,
        before_gang: Callable[[Planned, Sequence[Resources]], None] | None = None,
    ) -> None:
        self._before_gang = before_gang
        self._config, self._run, self._work = config, run, work
        self._describe = describe or (lambda item: write_job(config, run, item))
        self._cost = CostEstimate(config, run)
        self._fanout: Fanout
        self._gangs: dict[str, Gang] = {}
        self._checkpoints: dict[str, str] = {}  # digest of a gang → its newest when the attempt began
        self._watch: NodeWatch

    @contextmanager
    def connected(self) -> Iterator[None]:
        with connect(self._run, self._config.cluster.address) as cluster, NodeWatch(*cluster) as self._watch:
            # Imports Ray, whose environment is set by now.
            from pipeline.fanout import Fanout

            if cluster.name != THIS_MACHINE:
                check_reach(cluster.name)
            self._fanout = Fanout(self._run.path, self._work)
            yield

    def nodes(self) -> list[Resources]:
        return self._watch.nodes()

    def now(self) -> float:
        return time.monotonic()

    def cost(self, item: Planned) -> float:
        return self._cost(item)

    def start(self, item: Planned) -> None:
        job = self._run.job(item.digest)
        job.stop.unlink(missing_ok=True)
        self._describe(item)
        if not item.job.workers:
            self._fanout.submit(item)
            return
        if self._before_gang is not None:
            self._before_gang(item, self.nodes())
        # Imports Ray Train, which takes seconds.
        from pipeline.gang import Gang

        self._checkpoints[item.digest] = _newest_checkpoint(job)
        self._gangs[item.digest] = Gang(self._run.path, item)

    def ask_to_stop(self, digest: str) -> None:
        self._run.job(digest).stop.touch()

    def poll(self, timeout_s: float) -> list[Outcome]:
        self._watch.check()
        ended = self._fanout.poll(timeout_s)
        for gang in list(self._gangs.values()):
            outcome = gang.poll()
            if outcome is not None:
                del self._gangs[outcome.digest]
                ended.append(self._with_progress(outcome))
        if not ended and not self._fanout.busy:
            time.sleep(timeout_s)
        return [self._with_note(outcome) for outcome in ended]

    def _with_progress(self, outcome: Outcome) -> Outcome:
        # A gang that lost a host must not ask for it again: its next start would wait for it.
        self._watch.renew()
        newest = _newest_checkpoint(self._run.job(outcome.digest))
        return replace(outcome, progressed=newest > self._checkpoints.pop(outcome.digest))

    def _with_note(self, outcome: Outcome) -> Outcome:
        if outcome.error is not None or outcome.stopped:
            return outcome
        result = self._run.job(outcome.digest).read_result() or {}
        return replace(outcome, note=str(result.get("outputs", {}).get("note", "")))


def _newest_checkpoint(job: JobDir) -> str:
    """Name of the newest complete one, '' before the first; names sort by step."""
    return max((Path(file).parent.name for file in job.checkpoints.glob("step-*/COMPLETE")), default="")

"""Drives a run: plans the graph, starts what is due, decides what a failure means, ends in order.

The driver is disposable. All it knows it reads from the run's directory, and the same command on the
same directory goes on where the last one ended, however that ended.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline import admission
from pipeline.cluster import connect
from pipeline.config import RunConfig
from pipeline.config_io import dump_config
from pipeline.errors import JobsFailed, StopRequested, VitlineError
from pipeline.events import EventLog
from pipeline.graph import Outcome, Planned, plan
from pipeline.lease import Lease
from pipeline.rundir import RunDir, read_json, write_atomic, write_json
from pipeline.stages import compare, prepare, pretrain
from pipeline.stages.catalog import all_jobs, write_job, write_result

_POLL_S = 0.2
_TRUNK = (prepare.STAGE, pretrain.STAGE)


class Display(Protocol):
    """Where progress is shown; the command line has one for terminals and one for logs."""

    def job(self, planned: Planned, state: str, reason: str) -> None: ...
    def tick(self) -> None: ...


def run_dir_of(config: RunConfig) -> RunDir:
    return RunDir(Path(config.root) / config.name)


def plan_run(config: RunConfig, run: RunDir) -> list[Planned]:
    """All jobs with their states; reads the run's directory and changes nothing."""
    return plan(
        all_jobs(config),
        lambda digest: run.job(digest).result.exists(),
        _earlier_jobs(run),
    )


def _earlier_jobs(run: RunDir) -> dict[str, dict[str, Any]]:
    """Newest job.json of each name."""
    files = sorted(run.jobs.glob("*/job.json"), key=lambda file: file.stat().st_mtime)
    jobs = (read_json(file) for file in files)
    return {job["name"]: job for job in jobs if job is not None}


@dataclass
class _State:
    """What the driver keeps while it runs."""

    waiting: list[Planned]
    done: set[str] = field(default_factory=set)  # names
    failed: dict[str, str] = field(default_factory=dict)  # name → error
    running: dict[str, Planned] = field(default_factory=dict)  # digest → job
    failures: dict[str, int] = field(default_factory=dict)  # digest → attempts that failed
    # Why the run must end: without its data or its pre-training the rest has no purpose.
    fault: VitlineError | None = None


class Driver:
    """One command's worth of work on a run."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        lease: Lease,
        display: Display,
        stop: threading.Event,
        on_connected: Callable[[], None],
    ) -> None:
        """`on_connected` is called once Ray is up: Ray's own handler of SIGTERM ends the process at once,
        so the caller's must be installed after it."""
        self.config = config
        self.run = run
        self.lease = lease
        self.on_connected = on_connected
        self.display = display
        self.stop = stop
        self._log = EventLog(run.events)

    def drive(self, planned: Sequence[Planned]) -> None:
        """Do all that is due.

        Raises:
            JobsFailed: some jobs failed for good; all others that could be done are done.
            VitlineError: the data or the pre-training failed; nothing else was started after that.
            StopRequested: `self.stop` was set; every running job has saved and ended.
            EnvironmentUnfit: the cluster can never run one of the jobs.
            Busy: another driver took the run over.
        """
        write_atomic(self.run.config, dump_config(self.config).encode())
        self._log({"event": "run", "state": "started", "name": self.config.name, "commit": _commit()})
        due = [item for item in planned if item.state == "due"]
        state = _State(waiting=due, done={item.job.name for item in planned if item.state == "done"})
        _set_aside(self.run, due)
        for item in planned:
            self._report(item, "waiting" if item.state == "due" else "skipped", item.reason)
        try:
            on_cluster = [item for item in due if item.job.stage != compare.STAGE]
            if on_cluster:
                with connect(self.run, self.config.cluster.address) as resources:
                    self.on_connected()
                    admission.check_fits(on_cluster, resources)
                    self._work(state, resources)
            if state.fault:
                raise state.fault
            if self.stop.is_set():
                raise StopRequested(
                    "a stop was asked for", "a finished run", "run the same command to continue"
                )
            self._compare(planned, state)
        except BaseException as error:
            stopped = isinstance(error, StopRequested | KeyboardInterrupt)
            self._log({"event": "run", "state": "stopped" if stopped else "failed"})
            raise
        finally:
            self.display.tick()
        self._end(state)

    def _end(self, state: _State) -> None:
        self._log({"event": "run", "state": "failed" if state.failed else "finished"})
        if state.failed:
            first, error = next(iter(state.failed.items()))
            rest = f" and {len(state.failed) - 1} more" if len(state.failed) > 1 else ""
            raise JobsFailed(
                f"{first}{rest} failed; {len(state.done)} jobs are done. The first said:\n{error}",
                "all jobs done",
                f"see {self.run.path}/jobs/*/logs, mend it, run again: only what is missing runs",
            )

    # ---------------------------------------------------------------- the cluster's jobs

    def _work(self, state: _State, resources: dict[str, float]) -> None:
        # Both import Ray, which is not needed where nothing is due.
        from pipeline.fanout import Fanout
        from pipeline.gang import Gang

        fanout = Fanout(self.run.path)
        gangs: dict[str, Gang] = {}
        while True:
            self.lease.check()
            for item, reason in admission.orphans(state.waiting, state.failed):
                state.waiting.remove(item)
                state.failed[item.job.name] = reason
                self._report(item, "failed", reason)
            if not (self.stop.is_set() or state.fault):
                for item in admission.startable(state.waiting, state.done, state.running.values(), resources):
                    if not self._start(item, state):
                        continue
                    if item.job.workers:
                        gangs[item.digest] = Gang(self.run.path, item)
                    else:
                        fanout.submit(item)
            else:
                self._ask_to_stop(state)
            if not state.running:
                return
            outcomes = list(fanout.poll(_POLL_S))
            outcomes += [outcome for gang in gangs.values() if (outcome := gang.poll()) is not None]
            for outcome in outcomes:
                gangs.pop(outcome.digest, None)
                self._finish(outcome, state)
            if not outcomes:
                time.sleep(_POLL_S)
            self.display.tick()

    def _start(self, item: Planned, state: _State) -> bool:
        """Describe the job on disk; False where its inputs turn out not to allow it."""
        state.waiting.remove(item)
        self.run.job(item.digest).stop.unlink(missing_ok=True)
        try:
            write_job(self.config, self.run, item)
        except VitlineError as error:
            state.failed[item.job.name] = str(error)
            self._report(item, "failed", str(error))
            return False
        state.running[item.digest] = item
        self._report(item, "running", f"attempt {state.failures.get(item.digest, 0) + 1}")
        return True

    def _finish(self, outcome: Outcome, state: _State) -> None:
        item = state.running.pop(outcome.digest)
        if outcome.stopped:
            state.waiting.append(item)
            self._report(item, "stopped", "with a checkpoint" if item.job.workers else "")
        elif outcome.error is None:
            state.done.add(item.job.name)
            result = self.run.job(item.digest).read_result() or {}
            self._report(item, "done", str(result.get("outputs", {}).get("note", "")))
        else:
            failures = state.failures[item.digest] = state.failures.get(item.digest, 0) + 1
            budget = (
                self.config.pretrain.gang.max_failures if item.job.workers else self.config.fanout.retries
            )
            again = outcome.retry and failures <= budget and not self.stop.is_set()
            if again:
                state.waiting.append(item)
            else:
                state.failed[item.job.name] = outcome.error
                if item.job.stage in _TRUNK:
                    state.fault = state.fault or outcome.fault or _job_failed(self.run, item, outcome.error)
            self._report(item, "waiting" if again else "failed", outcome.error)

    def _ask_to_stop(self, state: _State) -> None:
        for digest in state.running:
            self.run.job(digest).stop.touch()

    # ---------------------------------------------------------------- the driver's own job

    def _compare(self, planned: Sequence[Planned], state: _State) -> None:
        """The report of all that is done; it counts as done only when nothing is missing."""
        item = next((item for item in planned if item.job.stage == compare.STAGE), None)
        digests = {p.job.name: p.digest for p in planned if p.job.name in state.done}
        if item is None or item.state == "done" or not any(name.startswith("evaluate/") for name in digests):
            return
        # Matplotlib takes seconds to import.
        from pipeline.report.build import build

        started = time.time()
        self._report(item, "running", "")
        write_job(self.config, self.run, item)
        paths = build(self.run, self.config.model_dump(mode="json"), digests)
        if state.failed:
            self._report(item, "failed", f"{len(state.failed)} jobs are missing in the report")
            return
        job = read_json(self.run.job(item.digest).job)
        assert job is not None
        write_result(self.run, item.digest, job, started, {}, {"report": str(paths.html.name)})
        self._report(item, "done", "")

    def _report(self, item: Planned, state: str, reason: str) -> None:
        self._log(
            {
                "event": "job",
                "digest": item.digest,
                "name": item.job.name,
                "stage": item.job.stage,
                "state": state,
                "reason": reason,
            }
        )
        self.display.job(item, state, reason)


def _set_aside(run: RunDir, due: Sequence[Planned]) -> None:
    """Move what forced jobs made to jobs/.replaced: they begin anew, and nothing is lost."""
    for item in due:
        job = run.job(item.digest)
        if job.result.exists():
            target = run.jobs / ".replaced" / f"{item.digest}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            job.path.rename(target)


def _job_failed(run: RunDir, item: Planned, error: str) -> JobsFailed:
    return JobsFailed(
        f"{item.job.name} failed: {error}",
        "prepared data and a finished pre-training, which all else needs",
        f"see {run.job(item.digest).path}/logs, mend it and run again",
    )


def _commit() -> str | None:
    """Commit of the code, where it is a checkout."""
    try:
        return subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_outcome(run: RunDir, exit_code: int, message: str | None) -> None:
    """RUN/result.json: how the command ended, for wrappers that lose exit codes."""
    write_json(run.result, {"schema": 1, "exit_code": exit_code, "message": message, "finished": time.time()})

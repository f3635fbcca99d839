"""Drives a run: plans the graph, has the cluster do what is due, writes the report, ends in order.

The driver is disposable. All it knows it reads from the run's directory, and the same command on the
same directory goes on where the last one ended, however that ended.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import RunConfig
from pipeline.config_io import dump_config
from pipeline.errors import JobsFailed, StopRequested
from pipeline.events import EventLog
from pipeline.executor import Executor, RayExecutor
from pipeline.graph import Job, Planned, plan
from pipeline.lease import Lease
from pipeline.rundir import RunDir, read_json, write_atomic, write_json
from pipeline.stages import compare
from pipeline.stages.catalog import all_jobs, write_job, write_result
from pipeline.workload import Workload


class Display(Protocol):
    """Where progress is shown; the command line has one for terminals and one for logs."""

    def job(self, planned: Planned, state: str, reason: str) -> None: ...
    def tick(self) -> None: ...


def run_dir_of(config: RunConfig) -> RunDir:
    return RunDir(Path(config.root) / config.name)


def plan_run(config: RunConfig, run: RunDir) -> list[Planned]:
    """All jobs with their states; reads the run's directory and changes nothing."""
    return plan_jobs(all_jobs(config), run)


def plan_jobs(jobs: Sequence[Job], run: RunDir) -> list[Planned]:
    planned = plan(jobs, lambda digest: run.job(digest).result.exists(), _earlier_jobs(run))
    # A directory has one report: a comparison that is done has to be made again after another one.
    shown = (read_json(run.report_maker) or {}).get("digest")
    return [
        replace(item, state="due", reason="the report shows another comparison")
        if item.job.stage == compare.STAGE and item.state == "done" and item.digest != shown
        else item
        for item in planned
    ]


def _earlier_jobs(run: RunDir) -> dict[str, dict[str, Any]]:
    """Newest job.json of each name."""
    files = sorted(run.jobs.glob("*/job.json"), key=lambda file: file.stat().st_mtime)
    jobs = (read_json(file) for file in files)
    return {job["name"]: job for job in jobs if job is not None}


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
        executor: Executor | None = None,
    ) -> None:
        """`on_connected` is called once Ray is up: Ray's own handler of SIGTERM ends the process at once,
        so the caller's must be installed after it. `executor`: where jobs run; default: on Ray."""
        self.config = config
        self.run = run
        self.lease = lease
        self.on_connected = on_connected
        self.display = display
        self.stop = stop
        self.executor = executor or RayExecutor(config, run)
        self._log = EventLog(run.events)

    def drive(self, planned: Sequence[Planned]) -> None:
        """Do all that is due.

        Raises:
            JobsFailed: some jobs failed for good; all others that could be done are done.
            VitlineError: the pre-training or its data failed; nothing else was started after that.
            StopRequested: `self.stop` was set; every running job has saved and ended.
            EnvironmentUnfit: the cluster can never run one of the jobs.
            Busy: another driver took the run over.
        """
        write_atomic(self.run.config, dump_config(self.config).encode())
        self._log(
            {
                "event": "run",
                "state": "started",
                "name": self.config.name,
                "version": metadata.version("vitline"),
                "commit": _commit(),
            }
        )
        due = [item for item in planned if item.state == "due"]
        _set_aside(self.run, due)
        for item in planned:
            self._report(item, "waiting" if item.state == "due" else "skipped", item.reason)
        done = {item.job.name for item in planned if item.state == "done"}
        work = Workload(
            self.config,
            self.run,
            self.executor,
            self.lease,
            self.stop,
            done,
            self._report,
            self.display.tick,
        )
        try:
            on_cluster = [item for item in due if item.job.stage != compare.STAGE]
            if on_cluster:
                with self.executor.connected():
                    self.on_connected()
                    work.do(on_cluster)
            if work.fault:
                raise work.fault
            if self.stop.is_set():
                raise StopRequested(
                    "a stop was asked for", "a finished run", "run the same command to continue"
                )
            self._compare(planned, work)
        except BaseException as error:
            stopped = isinstance(error, StopRequested | KeyboardInterrupt)
            self._log({"event": "run", "state": "stopped" if stopped else "failed"})
            raise
        finally:
            self.display.tick()
        self._end(work)

    def _end(self, work: Workload) -> None:
        self._log({"event": "run", "state": "failed" if work.failed else "finished"})
        if work.failed:
            first, error = next(iter(work.failed.items()))
            rest = f" and {len(work.failed) - 1} more" if len(work.failed) > 1 else ""
            left_out = f"{len(work.not_run)} that need what failed were not run; " if work.not_run else ""
            raise JobsFailed(
                f"{first}{rest} failed; {left_out}{len(work.done)} jobs are done. The first said:\n{error}",
                "all jobs done",
                f"see {self.run.path}/jobs/*/logs, mend it, run again: only what is missing runs",
            )

    # ---------------------------------------------------------------- the driver's own job

    def _compare(self, planned: Sequence[Planned], work: Workload) -> None:
        """The report of all that is done; it counts as done only when nothing is missing."""
        item = next((item for item in planned if item.job.stage == compare.STAGE), None)
        digests = {p.job.name: p.digest for p in planned if p.job.name in work.done}
        if item is None or item.state == "done":
            return
        if not any(name.startswith("evaluate/") for name in digests):
            self._report(item, "not run", "nothing was evaluated")
            return
        # Matplotlib takes seconds to import.
        from pipeline.report.build import build

        started = time.time()
        self._report(item, "running", "")
        write_job(self.config, self.run, item)
        self.run.report_maker.unlink(missing_ok=True)
        paths = build(self.run, self.config.model_dump(mode="json"), digests)
        if work.failed:
            missing = len(work.failed) + len(work.not_run)
            self._report(item, "failed", f"{missing} jobs are missing in the report")
            return
        job = read_json(self.run.job(item.digest).job)
        assert job is not None
        write_result(self.run, item.digest, job, started, {}, {"report": str(paths.html.name)})
        write_json(self.run.report_maker, {"digest": item.digest})
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

"""Many ranks that live and die together, placed by Ray Train.

    start ──► Ray Train places W workers, sets the ranks' variables, joins them in one process group
              each runs pipeline.train.worker on the same job
    a rank dies ──► Ray Train ends the others ──► the driver decides by the first failing rank's error:
              a lost process, node or connection is tried again (a new generation, from the last
              complete checkpoint), a fault of the input or the data is not

    a node is to be taken away ──► its ranks are told (preemption.py), all save and end: a stop, not a failure

Checkpoints, events and samples are the worker's own; nothing goes through Ray Train's reports. What the gang
itself notes in the job's events.jsonl (`{"event": "gang", "phase": …}`) splits the time from a fault to the
next step (recovery.py). This is the only file that knows Ray Train.
"""

from __future__ import annotations

import logging
import math
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

from pipeline import preemption
from pipeline.errors import EnvironmentUnfit, StopRequested, VitlineError
from pipeline.events import EventLog, read_events
from pipeline.graph import Outcome, Planned
from pipeline.rundir import JobDir, RunDir
from pipeline.train.faults import lost_rank

# Set on purpose; Ray Train's own values stand behind each. Read when ray.train is imported.
_ENVIRONMENT = {
    # 2 s: the only poll that notices a dead rank.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # 600 s: a rank that does not answer is dead.
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # 60 s: large images are pulled and PyTorch imported meanwhile, on busy disks.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ours looks instead: preemption.py says why.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})

import ray.train  # noqa: E402
from ray import PlacementGroupID  # noqa: E402
from ray.exceptions import RayError, RayTaskError  # noqa: E402
from ray.train.torch import TorchConfig, TorchTrainer  # noqa: E402
from ray.train.v2._internal.callbacks import DatasetsCallback  # noqa: E402
from ray.train.v2._internal.callbacks.placement_group_callback import (  # noqa: E402
    PlacementGroupCleanerCallback,
)
from ray.train.v2.api.callback import UserCallback  # noqa: E402
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError  # noqa: E402
from ray.util.placement_group import PlacementGroup  # noqa: E402

# A collective that nobody joins for this long has lost a rank.
_COLLECTIVE_TIMEOUT_S = 600
# From the start of an attempt until its first rank runs; twice what Ray Train gives its workers to start.
_START_TIMEOUT_S = 600.0


class Gang:
    """One attempt of a gang job; runs in a thread, because Ray Train's `fit` blocks."""

    def __init__(self, run_dir: Path, planned: Planned) -> None:
        self.planned = planned
        self._run_dir = run_dir.resolve()
        self._outcome: Outcome | None = None
        self._start = _StartWatch(RunDir(self._run_dir).job(planned.digest).events, _START_TIMEOUT_S)
        self._thread = threading.Thread(target=self._fit, name=f"gang-{planned.digest}", daemon=True)
        self._thread.start()

    def poll(self) -> Outcome | None:
        """How it ended; None while it runs."""
        if not self._thread.is_alive():
            return self._outcome
        if self._start.is_overdue():
            # Its thread may wait for ever: nothing that could end it has been heard of.
            fault = _never_began(self.planned, self._run_dir)
            return Outcome(digest=self.planned.digest, error=str(fault), fault=fault)
        return None

    def _fit(self) -> None:
        digest = self.planned.digest
        mark(self._run_dir, digest, "starting")
        try:
            self._outcome = self._attempt()
        except Exception as error:
            # Whatever ends this thread must reach the driver, which else waits for ever.
            self._outcome = Outcome(digest=digest, error=f"{type(error).__name__}: {error}", retry=False)
        finally:
            mark(self._run_dir, digest, "ended")

    def _attempt(self) -> Outcome:
        digest = self.planned.digest
        before = _places()
        try:
            self._trainer().fit()
        except TrainingFailedError as error:
            return _failure(digest, error, RunDir(self._run_dir).job(digest))
        except RayTaskError:
            raise  # from inside the controller: it would come again
        except RayError as error:
            # Ray Train's controller was lost: killed, by Ray itself where memory was short, or its node gone.
            # Its ranks end with it.
            _free_places(before)
            return Outcome(digest=digest, error=f"the gang's controller: {error}", retry=True)
        done = (self._run_dir / "jobs" / digest / "result.json").exists()
        return Outcome(digest=digest, stopped=not done)

    def _trainer(self) -> TorchTrainer:
        job = self.planned.job
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        return _Trainer(
            _rank,
            train_loop_config={"run_dir": str(self._run_dir), "digest": self.planned.digest},
            torch_config=TorchConfig(backend="nccl" if job.gpus else "gloo", timeout_s=_COLLECTIVE_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=job.workers,
                use_gpu=job.gpus > 0,
                resources_per_worker={"CPU": job.cpus, **({"GPU": job.gpus} if job.gpus else {})},
                placement_strategy="PACK",
            ),
            run_config=ray.train.RunConfig(
                name=self.planned.digest,
                storage_path=str(self._run_dir / "launch" / "ray_train"),
                # Retries are the driver's: it knows which errors another try can help.
                failure_config=ray.train.FailureConfig(
                    max_failures=0, max_preemption_failures=0, controller_failure_limit=3
                ),
                callbacks=[_Loss(self._run_dir, self.planned.digest)],
            ),
        )


class _StartWatch:
    """Whether an attempt's first rank has begun in time, by its note in the job's events."""

    def __init__(self, events: Path, timeout_s: float) -> None:
        self._events, self._offset = events, read_events(events)[1]
        self._deadline = time.monotonic() + timeout_s

    def is_overdue(self) -> bool:
        if time.monotonic() < self._deadline:
            return False
        new, _ = read_events(self._events, self._offset)
        if any(event["event"] == "gang" and event["phase"] == "rank" for event in new):
            self._deadline = math.inf
            return False
        return True


def _never_began(planned: Planned, run_dir: Path) -> EnvironmentUnfit:
    return EnvironmentUnfit(
        f"no rank of {planned.job.name} has begun in {_START_TIMEOUT_S:.0f} s",
        f"nodes that reach each other and the driver, and all see {run_dir}",
        "look at the nodes: vitline doctor CONFIG --address HOST:PORT; then run again",
    )


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without two processes that every start of a gang would wait for, 2 s of a core each.

    One hands out Ray's own datasets, which we have none of. The other removes the placement group of a
    controller that died; it asks the dashboard, which our clusters do not have, so `_free_places` does it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, unused)
        ]


class _Loss(UserCallback):  # type: ignore[misc]
    """Notes when ranks were found to be lost; runs in Ray Train's controller, before the others are ended."""

    def __init__(self, run_dir: Path, digest: str) -> None:
        self._run_dir, self._digest = run_dir, digest

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        mark(self._run_dir, self._digest, "lost", ranks=sorted(worker_exceptions))


def _places() -> set[str]:
    """Placement groups of this driver that hold resources."""
    # The last bytes of a group's id are those of the job that made it.
    job = ray.get_runtime_context().get_job_id()
    table = ray.util.placement_group_table()
    return {name for name, entry in table.items() if name.endswith(job) and entry["state"] != "REMOVED"}


def _free_places(before: set[str]) -> None:
    """Remove the groups made since; Ray keeps those of a dead actor until its whole job ends."""
    for name in _places() - before:
        identity = PlacementGroupID(bytes.fromhex(name))
        ray.util.remove_placement_group(PlacementGroup(identity))


def mark(run_dir: Path, digest: str, phase: str, **more: Any) -> None:
    """Note in the job's events how far an attempt has come, or its end; see recovery.py."""
    log = EventLog(RunDir(run_dir).job(digest).events)
    log({"event": "gang", "phase": phase, **more})
    log.close()


def _rank(config: dict[str, Any]) -> None:
    """Runs on each worker of the gang."""
    run_dir, digest = Path(config["run_dir"]), config["digest"]
    first = ray.train.get_context().get_world_rank() == 0
    if first:
        mark(run_dir, digest, "rank")
    # Imported where the work is done; the driver needs no PyTorch.
    from pipeline.train import worker

    with preemption.notice() as leaving:
        polls = 0

        def stop_asked() -> bool:
            """Called before the first step, and in each step once its gradients are there."""
            nonlocal polls
            polls += 1
            if first and polls == 2:
                mark(run_dir, digest, "step")
            return leaving()

        try:
            worker.run(run_dir, digest, stop_asked=stop_asked)
        except StopRequested:
            # All ranks agreed to stop and saved; Ray Train must not count this as a failure.
            return


def _failure(digest: str, error: TrainingFailedError, job: JobDir) -> Outcome:
    if not isinstance(error, WorkerGroupError):
        return Outcome(digest=digest, error=str(error), retry=True)
    if any(preemption.was_preempted(failure) for failure in error.worker_failures.values()):
        text = "a node was taken away before its ranks had saved"
        return Outcome(digest=digest, error=text, retry=True, preempted=True)
    failures = {rank: _cause(failure) for rank, failure in sorted(error.worker_failures.items())}
    # Survivors fail with a broken connection when one rank goes; an error of ours says more, and so does a
    # process that is gone.
    for failure in failures.values():
        if isinstance(failure, VitlineError):
            return Outcome(digest=digest, error=str(failure), fault=failure, retry=failure.retry)
    for rank, failure in failures.items():
        if death := getattr(failure, "health_check_failure", None):
            return Outcome(digest=digest, error=_lost(rank, str(death)), retry=True)
    own = {rank: failure for rank, failure in failures.items() if not _is_anothers(failure)}
    rank, first = next(iter((own or failures).items()))
    text = f"rank {rank}: {type(first).__name__}: {first}"
    if own:
        text += _traceback(job.rank_log(job.read_generation(), rank))
    return Outcome(digest=digest, error=text, retry=not _is_bug(first))


def _is_anothers(error: BaseException) -> bool:
    """Whether a rank failed because another had."""
    lost = lost_rank(error) if isinstance(error, Exception) else None
    return lost is not None or isinstance(error, ConnectionError)


def _traceback(log: Path) -> str:
    """Where a rank failed, which Ray Train does not hand on, by its log."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback ")]
    return f"\n{log}:\n" + "\n".join(lines[starts[0] :]) if starts else ""


def _cause(error: BaseException) -> BaseException:
    """The exception that the rank raised, out of Ray's wrappings."""
    cause = getattr(error, "cause", None)
    return _cause(cause) if isinstance(cause, BaseException) else error


def _lost(rank: int, death: str) -> str:
    """What Ray says of a dead worker, with the part that helps first."""
    address = re.search(r"^\tip: (.+)$", death, re.MULTILINE)
    return f"rank {rank}{f' on {address[1]}' if address else ''} was lost\n{death}"


def _is_bug(error: BaseException) -> bool:
    """An error that comes again with the same code and data."""
    return isinstance(error, TypeError | AttributeError | NameError | KeyError | IndexError | AssertionError)

"""What runs on one rank, under torchrun, under Ray, or alone.

    python -m pipeline.train.worker RUN/jobs/DIGEST/job.json     a process of its own; torchrun starts several
    run(RUN, DIGEST)                                             inside a process of somebody else's (Ray)

job.json says what to do (pipeline/config/work.py: TrainJob, EvaluateJob, ProbeJob). result.json, written
last by rank 0, says that it is done. An attempt can be killed at any moment; the next one goes on from the
last complete checkpoint. Exit codes are those of pipeline/errors.py; 75 means stopped on request.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pipeline.train.stopping import (
    StopSwitch,
    end_with_parent,
    remember_signals,
    seconds_in,
    signals_turn_on,
)

if __name__ == "__main__":
    # Before PyTorch is imported, for seconds, in which a signal would end the process with -15.
    remember_signals()

import model
import pipeline.errors
from pipeline.config import EvaluateJob, ProbeJob, TrainJob
from pipeline.errors import (
    Busy,
    ConfigError,
    EnvironmentUnfit,
    StopRequested,
    TrainingError,
    UserError,
    VitlineError,
)
from pipeline.events import EventLog
from pipeline.rundir import JobDir, RunDir, read_json, write_json
from pipeline.train.attempt import Attempt, rank_log
from pipeline.train.evaluating import run_evaluation
from pipeline.train.faults import disk_faults_named, lost_rank
from pipeline.train.probing import run_probe
from pipeline.train.training import run_training
from pipeline.train.world import World, join_world

# By its full name: as a process of its own this module is called __main__.
log = logging.getLogger("pipeline.train.worker")

Work = TrainJob | EvaluateJob | ProbeJob

_SUMMARY = "Trains or evaluates one job, as one rank."

# Raised by all ranks together, so one of them reports it for all.
_AGREED = (UserError, TrainingError, Busy, StopRequested)


def run(
    run_dir: Path,
    digest: str,
    *,
    stop_asked: Callable[[], bool] | None = None,
    device: str | None = None,
    stop_after_s: float | None = None,
) -> dict[str, Any]:
    """Do the job `digest` of the run in `run_dir`, as this process' rank; returns its result.

    A job that is done already returns at once. Joins the ranks that torch.distributed knows, if the
    caller has initialised it, else those that the environment names.

    Args:
        stop_asked: polled at each step; True leads to a checkpoint and StopRequested.
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        stop_after_s: seconds from now after which it stops by itself, with a checkpoint.
    """
    job_dir = RunDir(run_dir).job(digest)
    return _run(job_dir, run_dir, digest, StopSwitch(job_dir.stop, stop_asked, stop_after_s), device)


def _run(
    job_dir: JobDir, run_dir: Path, digest: str, stop: StopSwitch, device: str | None, leave: bool = True
) -> dict[str, Any]:
    description = read_job(job_dir)
    work = description["work"]
    zero = isinstance(work, TrainJob) and work.settings.engine.kind == "zero"
    with disk_faults_named(job_dir.path), join_world(device, needs_group=zero, leave=leave) as world:
        done: dict[str, Any] | None = world.from_first(job_dir.read_result())
        if done is not None:
            return done
        generation = world.on_first(partial(_next_generation, job_dir))
        events = EventLog(job_dir.events, attempt=generation)
        report = events if world.rank == 0 else _say_nothing
        attempt = Attempt(run_dir, job_dir, digest, world, generation, report, stop)
        with rank_log(job_dir.rank_log(generation, world.rank), world.rank):
            try:
                return _work(attempt, work, description)
            except Exception as error:
                with suppress(OSError):  # the disk may be what failed
                    _report_failure(error, world, events)
                raise
            finally:
                events.close()


def _next_generation(job_dir: JobDir) -> int:
    with disk_faults_named(job_dir.path):
        return job_dir.next_generation()


def _work(attempt: Attempt, work: Work, description: Mapping[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    log.info("attempt %d at job %s (%s)", attempt.generation, attempt.digest, description["name"])
    if isinstance(work, TrainJob):
        metrics, outputs = run_training(work, attempt)
    elif isinstance(work, ProbeJob):
        metrics, outputs = run_probe(work, attempt, description["name"])
    else:
        metrics, outputs = run_evaluation(work, attempt, description["name"])
    result = {
        "schema": 1,
        "digest": attempt.digest,
        "name": description["name"],
        "stage": description["stage"],
        "finished": time.time(),
        "seconds": time.monotonic() - began,
        "metrics": metrics,
        "outputs": outputs,
    }
    result = dict(attempt.world.from_first(result))
    if attempt.world.rank == 0:
        attempt.check_fence()
        write_json(attempt.job.result, result)
    attempt.world.barrier()
    return result


def read_job(job_dir: JobDir) -> dict[str, Any]:
    """job.json with its `work` as settings. Raises ConfigError for a file that is not there or not ours."""
    description = read_json(job_dir.job)
    if description is None:
        raise ConfigError(
            f"no {job_dir.job}", "a job that `vitline run` has written", "check the path, or run the pipeline"
        )
    kinds: dict[object, type[Work]] = {"train": TrainJob, "evaluate": EvaluateJob, "probe": ProbeJob}
    kind = description.get("work", {}).get("kind")
    if kind not in kinds:
        raise ConfigError(
            f"work of kind {kind!r} in {job_dir.job}",
            f"one of {', '.join(map(str, kinds))}",
            "run this job with `vitline run`; the worker only trains and evaluates",
        )
    try:
        work = kinds[kind].model_validate(description["work"])
    except ValueError as error:
        raise ConfigError(
            f"{job_dir.job}: {error}", "settings of this version of vitline", "run `vitline run` again"
        ) from error
    return {**description, "work": work}


def check_one_root() -> None:
    """Refuse to run with a `model` or `pipeline` package of somebody else's in the way."""
    roots = {Path(str(module.__file__)).resolve().parent.parent for module in (model, pipeline.errors)}
    if len(roots) > 1:
        raise EnvironmentUnfit(
            f"the packages model and pipeline come from {' and '.join(sorted(map(str, roots)))}",
            "both from one place",
            "set PYTHONSAFEPATH=1, or start from another directory",
        )


def _report_failure(error: Exception, world: World, events: EventLog) -> None:
    """Into this rank's log with its traceback, and into the events once."""
    if isinstance(error, StopRequested):
        log.info("stopped: %s", error.found)
        return
    log.error("failed: %s", error, exc_info=True)
    error = lost_rank(error) or error
    if world.rank == 0 or not isinstance(error, _AGREED):
        text = str(error) if isinstance(error, VitlineError) else f"{type(error).__name__}: {error}"
        events({"event": "failed", "rank": world.rank, "error": text})


def _say_nothing(event: Mapping[str, Any]) -> None:
    """Ranks other than 0 report nothing."""


def main(arguments: list[str] | None = None) -> int:
    """The process of one rank; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.train.worker", description=__doc__.splitlines()[0]
    )
    parser.add_argument("job", type=Path, help="RUN/jobs/DIGEST/job.json")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: the GPU where there is one")
    parser.add_argument(
        "--stop-after", type=seconds_in, metavar="3h50m", help="stop with a checkpoint after this time"
    )
    given = parser.parse_args(arguments)
    path: Path = given.job.resolve()
    end_with_parent()
    job_dir = JobDir(path.parent)
    stop = StopSwitch(job_dir.stop, after_s=given.stop_after)
    try:
        check_one_root()
        with signals_turn_on(stop):
            _run(job_dir, path.parents[2], path.parent.name, stop, given.device, leave=False)
    except VitlineError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    except Exception as error:
        if (lost := lost_rank(error)) is None:
            traceback.print_exc()
            return 1
        sys.stderr.write(f"{lost}\n")
        return lost.exit_code
    return 0


def _end(code: int) -> NoReturn:
    """End now. All is written; taking PyTorch's and gloo's threads apart can only fail (SIGABRT was seen)."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end(main())

"""What test_spread.py has a cluster of this machine do, in a process of its own:

    python spread_cluster.py RUN

prepares the dataset of RUN/jobs/prepare as a job that holds every CPU of the cluster, is stopped after some
shards, and goes on. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.cluster import connect
from pipeline.errors import DataError
from pipeline.graph import Job, Outcome, Planned
from pipeline.rundir import RunDir

DIGEST = "prepare"
SHARDS_BEFORE_STOP = 3
TIMEOUT_S = 120


def meet(directory: Path, number: int) -> int:
    """Returns once the other of two calls has begun too, so only if both run at once."""
    (directory / f"begun-{number}").touch()
    end = time.monotonic() + TIMEOUT_S
    while not (directory / f"begun-{1 - number}").exists():
        assert time.monotonic() < end, "the other call did not begin"
        time.sleep(0.02)
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise DataError("three", "another number", "count differently")
    return number


def inside_a_job(directory: str) -> tuple[list[int], list[int], str]:
    from pipeline.fanout import spread

    met = list(spread(partial(meet, Path(directory)), [0, 1]))
    before = []
    try:
        for number in spread(fail_at_three, range(20)):
            before.append(number)
    except DataError as error:
        return met, before, error.found
    raise AssertionError("no error came")


def prepare_job(cpus: float) -> Planned:
    job = Job(name="prepare/x", stage="prepare", version=1, slice={}, identity={}, cpus=cpus)
    return Planned(job=job, digest=DIGEST, inputs={}, state="due", reason="new")


def outcome_of(fanout: Any) -> Outcome:
    while not (ended := fanout.poll(1.0)):
        pass
    return ended[0]


def main() -> None:
    run = RunDir(Path(sys.argv[1]))
    job = run.job(DIGEST)
    with connect(run, None):
        # Imports of Ray, whose environment is set only now.
        import ray

        from pipeline.fanout import Fanout

        cpus = float(ray.cluster_resources()["CPU"])
        met, before, error = ray.get(ray.remote(num_cpus=cpus)(inside_a_job).remote(str(run.path)))
        fanout = Fanout(run.path)
        fanout.submit(prepare_job(cpus))
        written = job.path / ".partial" / "train"
        while len(list(written.glob("*.json"))) < SHARDS_BEFORE_STOP:
            assert not fanout.poll(0.02), "the job ended before it could be stopped"
        job.stop.touch()
        stopped = outcome_of(fanout)
        # A call that was stopped between the tar and its note has not finished this shard.
        finished = [note.with_suffix(".tar") for note in written.glob("*.json")]
        kept = {path.name: path.stat().st_mtime_ns for path in finished}
        job.stop.unlink()
        fanout.submit(prepare_job(cpus))
        done = outcome_of(fanout)
    now = {path.name: path.stat().st_mtime_ns for path in (job.path / "train").glob("*.tar")}
    print(
        json.dumps(
            {
                "cpus": cpus,
                "met": met,
                "before": before,
                "error": error,
                "stopped": stopped.stopped,
                "kept": len(kept),
                "unchanged": kept.items() <= now.items(),
                "done": done.error,
            }
        )
    )


if __name__ == "__main__":
    main()

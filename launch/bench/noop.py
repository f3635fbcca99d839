"""Jobs that stand in for real ones, through the real driver and Ray: they sleep, and write their result."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.admission import Resources
from pipeline.config import RunConfig
from pipeline.driver import Driver, plan_jobs
from pipeline.events import read_events
from pipeline.executor import RayExecutor
from pipeline.graph import Job, Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir, read_json, write_json

STAGE = "evaluate"  # any of the fan-out


class Silent:
    """A display that shows nothing."""

    def job(self, planned: Planned, state: str, reason: str) -> None: ...
    def tick(self) -> None: ...


def jobs_of(durations: Sequence[float], cpus: float, *, known: bool = True, stage: str = STAGE) -> list[Job]:
    """One job a duration (seconds); `known` false hides the lengths from the scheduler."""
    return [
        Job(
            name=f"{stage}/{index}",
            stage=stage,
            version=1,
            slice={"seconds": seconds},
            identity={"seconds": seconds, "index": index},
            cpus=cpus,
            cost=seconds if known else 0.0,
        )
        for index, seconds in enumerate(durations)
    ]


def bench_config(root: Path, datasets: int = 1) -> RunConfig:
    """A run of 96 jobs a dataset; most of what is measured here reads only its place."""
    names = [f"set{index:03d}" for index in range(datasets)]
    return RunConfig.model_validate(
        {
            "name": "bench",
            "root": str(root),
            "datasets": {name: {"source": "digits"} for name in names},
            "pretrain": {
                "dataset": names[0],
                "model": {"name": "vit_ti8"},
                "image_size": 8,
                "duration": "1 steps",
                "batch": 1,
            },
            "transfer": {
                "datasets": names,
                "seeds": list(range(20)),
                "protocol": {
                    "name": "bench",
                    "image_size": 8,
                    "duration": "1 steps",
                    "batch": 1,
                    "learning_rates": [2.0**-power for power in range(8)],
                },
            },
            "tracking": {"enabled": False},
        }
    )


class BenchExecutor(RayExecutor):
    """Ray, with jobs whose length is known."""

    def __init__(self, config: RunConfig, run: RunDir) -> None:
        super().__init__(config, run, describe=self._write, work=pause)
        self._bench_run = run
        self.cpus = 0.0

    def nodes(self) -> list[Resources]:
        nodes = super().nodes()
        self.cpus = sum(node.get("CPU", 0.0) for node in nodes)
        return nodes

    def cost(self, item: Planned) -> float:
        return item.job.cost

    def _write(self, item: Planned) -> None:
        write_json(self._bench_run.job(item.digest).job, description(item))


def description(item: Planned) -> dict[str, object]:
    """What job.json says of a job."""
    return {
        "schema": 1,
        "digest": item.digest,
        "name": item.job.name,
        "stage": item.job.stage,
        "stage_version": item.job.version,
        "slice": dict(item.job.slice),
        "inputs": dict(item.inputs),
    }


def pause(run_dir: str, digest: str) -> None:
    """The work of a job: sleep as long as its settings say, write the result."""
    run = RunDir(Path(run_dir))
    job = read_json(run.job(digest).job)
    assert job is not None, f"no job.json for {digest}"
    time.sleep(job["slice"]["seconds"])
    write_json(run.job(digest).result, {"digest": digest, "outputs": {}, "metrics": {}})


def drive(jobs: Sequence[Job], root: Path, before: Sequence[Job] = ()) -> tuple[float, float]:
    """Seconds from the first job's start to the last one's end, and slots of one CPU that Ray had.

    The start of Ray itself is not in it: a run has it once. `before`: datasets, whose jobs are not counted;
    they leave behind the processes that they ran in.
    """
    config = bench_config(root)
    run = RunDir(root / config.name)
    planned = plan_jobs([*before, *jobs], run)
    executor = BenchExecutor(config, run)
    with Lease(run.lease) as lease:
        Driver(config, run, lease, Silent(), threading.Event(), lambda: None, executor).drive(planned)
    counted = {job.name for job in jobs}
    events = [event for event in read_events(run.events)[0] if event.get("name") in counted]
    done = [event["time"] for event in events if event["state"] == "done"]
    if len(done) != len(jobs):
        raise RuntimeError(f"{len(done)} of {len(jobs)} jobs are done")
    started = min(event["time"] for event in events if event["state"] == "running")
    return max(done) - started, executor.cpus

"""What the orchestration itself costs: jobs that do nothing, through the real driver and Ray.

    python -m launch.bench.fanout --jobs 1000 --mixed 48 --finished 10000
    python -m launch.bench.fanout --simulate --nodes 1000 --transfers 10000 --failures-per-hour 0 1

- `overhead`: jobs that only write their result; seconds for all, and the driver's memory;
- `packing`: jobs of very different length, started longest first and, to compare, in the order of the plan;
  the makespan against the least that any order could reach. Ray's worker processes are there already, as
  after the datasets of a run; `cold` says what it is when they must be started first, once a run;
- `skipping`: a run with so many finished jobs, planned anew: seconds until it is known that nothing is due.

With `--simulate` none of these: launch/bench/simulate.py says what instead.

Everything but the work is real: graph, files, lease, queue, Ray tasks, events. Nothing is sent to MLflow.
Every part has a process of its own, because Ray reads its environment once.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from launch.bench.noop import bench_config, description, drive, jobs_of
from launch.bench.simulate import SimulatedRow, simulate
from launch.bench.simulated import World
from pipeline.driver import plan_run
from pipeline.graph import Selection, select
from pipeline.rundir import RunDir, write_json
from pipeline.stages import compare, prepare
from pipeline.stages.catalog import STAGES


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result.

    `ideal_s`: no order of the same jobs on as many slots could be faster. `resident_mib` is the driver's
    largest so far; `own_mib` what it holds now without the pages of libraries, which are files.
    """

    what: str
    jobs: int
    slots: float
    seconds: float
    ideal_s: float
    ratio: float
    resident_mib: float
    own_mib: float


def overhead(count: int, cpus: float) -> Row:
    with tempfile.TemporaryDirectory(prefix="vitline-bench-") as place:
        seconds, slots = drive(jobs_of([0.0] * count, cpus), Path(place))
    return _row("overhead", count, slots / cpus, seconds, 0.0)


def packing(count: int, cpus: float, seed: int, known: bool, warm: bool) -> Row:
    """Durations over two orders of magnitude, as a grid over small and large datasets has them."""
    draw = random.Random(seed)
    durations = [0.2 * 10 ** (2 * draw.random()) for _ in range(count)]
    with tempfile.TemporaryDirectory(prefix="vitline-bench-") as place:
        # As many at once as there are slots, so that each gets a process of its own.
        datasets = jobs_of(
            [1.0] * round((os.cpu_count() or 1) / cpus) if warm else [], cpus, stage=prepare.STAGE
        )
        seconds, slots = drive(jobs_of(durations, cpus, known=known), Path(place), datasets)
    ideal = max(max(durations), sum(durations) / (slots // cpus))
    what = f"packing, {'longest' if known else 'plan'} first{'' if warm else ', cold'}"
    return _row(what, count, slots // cpus, seconds, ideal)


def skipping(count: int) -> Row:
    """Plans a run of about `count` finished jobs, from its settings; the files are written here, as the
    jobs would have."""
    with tempfile.TemporaryDirectory(prefix="vitline-bench-") as place:
        config = bench_config(Path(place), max(1, round(count / 97)))
        run = RunDir(Path(place) / config.name)
        for item in plan_run(config, run):
            job = run.job(item.digest)
            job.path.mkdir(parents=True)
            # Without flushing each to the disk: this is not what is measured.
            job.job.write_text(json.dumps(description(item)))
            job.result.write_text(json.dumps({"digest": item.digest}))
            if item.job.stage == compare.STAGE:
                write_json(run.report_maker, {"digest": item.digest})
        began = time.perf_counter()
        planned = select(plan_run(config, run), Selection(), STAGES)
        seconds = time.perf_counter() - began
    if any(item.state != "done" for item in planned):
        raise RuntimeError("a finished job was not skipped")
    return _row("skipping", len(planned), 0, seconds, 0.0)


def _row(what: str, count: int, slots: float, seconds: float, ideal: float) -> Row:
    memory = psutil.Process().memory_info()
    # ru_maxrss is in KiB on Linux.
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Row(
        what=what,
        jobs=count,
        slots=slots,
        seconds=round(seconds, 3),
        ideal_s=round(ideal, 3),
        ratio=round(seconds / ideal, 3) if ideal else 0.0,
        resident_mib=round(largest, 1),
        own_mib=round((memory.rss - memory.shared) / 2**20, 1),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="vitline bench fanout", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000, help="that do nothing; 0: leave out")
    parser.add_argument("--mixed", type=int, default=48, help="of 0.2 to 20 s; 0: leave out")
    parser.add_argument("--finished", type=int, default=10_000, help="to be skipped; 0: leave out")
    parser.add_argument("--cpus-per-job", type=float, default=1.0, help="of those that do nothing")
    parser.add_argument("--seed", type=int, default=0, help="of the mixed lengths; of the simulation")
    parser.add_argument("--csv", type=Path, help="append the rows to this file")
    _add_simulation(parser)
    given = parser.parse_args(arguments)
    if given.simulate:
        _print(_simulated(given), given.csv)
        return
    rows = []
    if given.finished:
        rows.append(_alone(skipping, given.finished))
    if given.jobs:
        rows.append(_alone(overhead, given.jobs, given.cpus_per_job))
    if given.mixed:
        # Jobs that sleep need no processor of their own: eight slots on two.
        for known, warm in ((True, True), (False, True), (True, False)):
            rows.append(_alone(packing, given.mixed, 0.25, given.seed, known, warm))
    _print(rows, given.csv)


def _add_simulation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--simulate", action="store_true", help="a large cluster with a clock of its own")
    parser.add_argument("--nodes", type=int, default=1000, help="of the simulated cluster, 8 GPUs each")
    parser.add_argument("--transfers", type=int, default=10_000, help="about so many jobs after pre-training")
    parser.add_argument("--failures-per-hour", type=float, nargs="+", default=[1.0], help="of all nodes")
    parser.add_argument("--repair-hours", type=float, default=4.0, help="until a failed node is back")
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0, help="between two of a gang")


def _simulated(given: argparse.Namespace) -> list[SimulatedRow]:
    world = World(
        nodes=given.nodes, repair_s=3600 * given.repair_hours, checkpoint_s=60 * given.checkpoint_minutes
    )
    rows = []
    for rate in given.failures_per_hour:
        with tempfile.TemporaryDirectory(prefix="vitline-bench-") as place:
            rows.append(simulate(world, given.transfers, rate, given.seed, Path(place)))
    return rows


def _print(rows: Sequence[Row] | Sequence[SimulatedRow], path: Path | None) -> None:
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in asdict(row).items()))
    if path is not None:
        _append(path, rows)


def _alone(measure: Callable[..., Row], *arguments: Any) -> Row:
    """In a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as processes:
        return processes.submit(measure, *arguments).result()


def _append(path: Path, rows: Sequence[Row] | Sequence[SimulatedRow]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


if __name__ == "__main__":
    main()

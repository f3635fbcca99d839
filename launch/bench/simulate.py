"""How well a large run keeps a large cluster busy while nodes fail, by simulation with the real scheduler.

    python -m launch.bench.fanout --simulate --nodes 1000 --transfers 10000 --failures-per-hour 0 1

One configuration of all stages: 48 hours of pre-training by a gang on about half of the GPUs, which may
shrink to half its ranks, and about `--transfers` jobs of the fan-out of minutes to hours, two to a GPU, half
of which need its weights. Jobs, digests, order, admission, retries and the growing of the gang are the real
ones (pipeline/graph, jobqueue, workload); cluster and clock are made up (launch/bench/simulated.py).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.bench.simulated import SimulatedCluster, World, drawn_failures
from pipeline.config import RunConfig
from pipeline.driver import plan_run
from pipeline.graph import Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from pipeline.stages import compare
from pipeline.workload import Workload

_JOBS_OF_A_DATASET = 97
_GANG_S = 48 * 3600.0
# Least and most of the other stages, drawn evenly in the logarithm; seconds.
_SECONDS = {
    "prepare": (300.0, 1800.0),
    "choose": (600.0, 14_400.0),
    "finetune": (600.0, 14_400.0),
    "evaluate": (60.0, 600.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRow:
    """One line of the result.

    `ideal_h`: the longest chain of jobs that need each other, or all work spread evenly over all GPUs,
    whichever is longer; no scheduler could be faster on a cluster without failures. `goodput`: share of the
    GPU time held by jobs that became results. `busy`: share of all GPU time there was that jobs held.
    `driver_s`: what the scheduler itself took, real seconds.
    """

    nodes: int
    jobs: int
    failures_per_hour: float
    checkpoint_s: float
    failures: int
    attempts_lost: int
    jobs_failed: int
    makespan_h: float
    ideal_h: float
    ratio: float
    goodput: float
    busy: float
    driver_s: float


def simulated_config(root: Path, world: World, transfers: int) -> RunConfig:
    names = [f"set{index:03d}" for index in range(max(1, round(transfers / _JOBS_OF_A_DATASET)))]
    # The largest power of two of ranks on at most 60 % of the GPUs: the batch divides evenly.
    ranks = 1 << (int(world.nodes * world.gpus * 0.6).bit_length() - 1)
    return RunConfig.model_validate(
        {
            "name": "simulated",
            "root": str(root),
            "datasets": {name: {"source": "digits"} for name in ["images", *names]},
            "pretrain": {
                "dataset": "images",
                "model": {"name": "vit_ti8"},
                "image_size": 8,
                "duration": "1 steps",
                "batch": 4 * ranks,
                "gang": {
                    "workers": ranks,
                    "min_workers": max(1, ranks // 2),
                    "cpus_per_worker": 4,
                    "gpus_per_worker": 1,
                },
            },
            "fanout": {"cpus_per_job": 2, "gpus_per_job": 0.5},
            "transfer": {
                "datasets": names,
                "seeds": list(range(20)),
                "protocol": {
                    "name": "simulated",
                    "image_size": 8,
                    "duration": "1 steps",
                    "batch": 1,
                    "learning_rates": [2.0**-power for power in range(8)],
                },
            },
            # A cluster of several nodes is joined, not started: it may have too few of them for a while.
            "cluster": {"address": "simulated"},
        }
    )


def lengths(planned: Sequence[Planned], seed: int) -> dict[str, float]:
    """Seconds of each job by digest."""
    draw = random.Random(seed)
    found = {}
    for item in planned:
        low, high = _SECONDS.get(item.job.stage, (_GANG_S, _GANG_S))
        found[item.digest] = low * (high / low) ** draw.random()
    return found


def ideal_s(planned: Sequence[Planned], seconds: dict[str, float], gpus: float) -> float:
    ends: dict[str, float] = {}  # by name
    work = 0.0
    for item in planned:  # inputs first
        before = max((ends[name] for name in item.job.inputs.values()), default=0.0)
        ends[item.job.name] = before + seconds[item.digest]
        work += seconds[item.digest] * item.job.gpus * max(1, item.job.workers)
    return max(*ends.values(), work / gpus)


def simulate(world: World, transfers: int, failures_per_hour: float, seed: int, place: Path) -> SimulatedRow:
    """`place`: an empty directory."""
    config = simulated_config(place, world, transfers)
    run = RunDir(place / config.name)
    planned = [item for item in plan_run(config, run) if item.job.stage != compare.STAGE]
    seconds = lengths(planned, seed)
    cluster = SimulatedCluster(world, seconds, drawn_failures(world, failures_per_hour, seed))
    work = Workload(
        config,
        run,
        cluster,
        Lease(run.lease),
        threading.Event(),
        set(),
        lambda item, state, reason: None,
        lambda: None,
    )
    began = time.perf_counter()
    work.do(planned)
    took = time.perf_counter() - began
    least, account = ideal_s(planned, seconds, world.nodes * world.gpus), cluster.account
    return SimulatedRow(
        nodes=world.nodes,
        jobs=len(planned),
        failures_per_hour=failures_per_hour,
        checkpoint_s=world.checkpoint_s,
        failures=account.failures,
        attempts_lost=account.hit,
        jobs_failed=len(work.failed) + len(work.not_run),
        makespan_h=round(cluster.now() / 3600, 2),
        ideal_h=round(least / 3600, 2),
        ratio=round(cluster.now() / least, 3),
        goodput=round(account.useful_s / account.held_s, 4),
        busy=round(account.held_s / account.alive_s, 4),
        driver_s=round(took, 1),
    )

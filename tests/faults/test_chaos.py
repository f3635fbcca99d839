"""A fault drawn at random every minute, for as many minutes as VITLINE_CHAOS_MINUTES says.

`make chaos` takes 20 minutes; without the variable it is a short form of 3. The seed is printed; to draw the
same faults again, set VITLINE_CHAOS_SEED.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config_io import load_config
from pipeline.data.mixture import open_data
from pipeline.driver import plan_run
from pipeline.events import read_events
from pipeline.recovery import describe, recoveries
from pipeline.rundir import RunDir
from pipeline.stages import pretrain
from pipeline.train.goodput import goodput
from pipeline.train.samplelog import read_sample_log
from tests.helpers.hosts import ROOT, Hosts
from tests.helpers.trainings import pretrain_of, trains, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = ROOT / "tests" / "integration" / "small.yaml"
INTERVAL_S = 60.0
BACK_S = 20.0  # after which a host that was taken comes back
# Of 14 a second on a quiet machine, when a third of the time goes into coming back: faults come to the end.
STEPS_PER_MINUTE = 700
# What a driver may end with that was killed, was refused, or lost the cluster; anything else is a finding.
ENDS = (-9, 8, 75)


class Chaos:
    """Draws and makes faults on the hosts beside the head's, and brings hosts back."""

    def __init__(self, cluster: Hosts, driver: Callable[[], Any], seed: int) -> None:
        self.cluster = cluster
        self.driver = driver
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.away: dict[int, float] = {}  # host → when it comes back

    def strike(self) -> str:
        """Make one fault; its name."""
        here = [host for host in range(1, self.cluster.count) if host not in self.away]
        faults = ["rank", "controller", "driver"] + (["cut", "power", "drain", "SIGTERM"] if here else [])
        name = self.random.choice(faults)
        if name == "driver":
            self.driver().kill()
        elif name in ("rank", "controller"):
            title = {"rank": "RayTrainWorker", "controller": "TrainController"}[name]
            hosts = range(self.cluster.count)
            found = [process for host in hosts for process in self.cluster.titled(host, title)]
            if not found:  # in the middle of a restart: the next minute, then
                return "none"
            self.random.choice(found).kill()
        else:
            self._take(name, self.random.choice(here))
        self.done[name] += 1
        return name

    def _take(self, name: str, host: int) -> None:
        if name == "cut":
            self.cluster.cut(host)
        elif name == "power":
            self.cluster.kill_all(host)
        elif name == "drain":
            self.cluster.drain(host, deadline_s=int(BACK_S))
        else:
            self.cluster.sigterm(host)
        self.away[host] = time.monotonic() + BACK_S

    def place(self) -> int:
        """A host for the next driver."""
        return self.random.choice([host for host in range(self.cluster.count) if host not in self.away])

    def repair(self) -> None:
        """Bring back, as new, the hosts whose time has come."""
        for host, due in list(self.away.items()):
            if time.monotonic() >= due:
                self.cluster.kill_all(host)
                self.cluster.ray[host].wait(20)
                self.cluster.mend(host)
                self.cluster.start_ray(host)
                del self.away[host]


def settings_of(root: Path, minutes: float) -> list[str]:
    return [
        f"root={root}",
        f"pretrain.duration={int(minutes * STEPS_PER_MINUTE)} steps",
        *("pretrain.batch=48", "pretrain.model.options.width=96", "pretrain.model.options.depth=4"),
        *("pretrain.gang.min_workers=1", "pretrain.gang.max_failures=1000"),
        *("cluster.wait_s=120", "tracking.enabled=false"),
    ]


def undisturbed(run: Path, settings: list[str]) -> dict[int, list[int]]:
    """Samples of each step, by arithmetic; that a training uses these is held by test_hosts.py."""
    config = load_config(SMALL, settings)
    job = next(item for item in plan_run(config, RunDir(run)) if item.job.stage == pretrain.STAGE)
    assert job.state == "done"
    view = open_data(pretrain.data(config.pretrain, job.inputs, "train", {}), run)
    order, batch = view.order(config.pretrain.order, config.seed), config.pretrain.batch
    steps = int(config.pretrain.duration.split()[0])
    return {
        step + 1: view.sample_id(order.indices(order.batch_positions(step, batch))).tolist()
        for step in range(steps)
    }


def test_a_fault_every_minute(
    hosts: Callable[..., Hosts], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    minutes = float(os.environ.get("VITLINE_CHAOS_MINUTES", "3"))
    seed = int(os.environ.get("VITLINE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}, {minutes:g} minutes")
    cluster = hosts(3)
    run = tmp_path / "run" / "small"
    settings = settings_of(tmp_path / "run", minutes)
    arguments = [str(SMALL), *settings, "--until", "pretrain"]
    process = cluster.run(*arguments)
    wait_for(lambda: trains(run), process)
    chaos = Chaos(cluster, lambda: process, seed)
    began = struck = time.monotonic()
    while (code := process.poll()) != 0:
        if code is not None:
            assert code in ENDS, cluster.output()
            host = chaos.place()
            print(f"{time.monotonic() - began:5.0f} s: the driver ended with {code}, the next is on {host}")
            process = cluster.run(*arguments, host=host)
        now = time.monotonic()
        assert now - began < (minutes + 5) * 60 * 2, "it does not get on"
        chaos.repair()
        if now - struck >= INTERVAL_S and now - began <= minutes * 60 + 1:
            struck = now
            print(f"{now - began:5.0f} s: {chaos.strike()}", flush=True)
        time.sleep(0.5)
    job = pretrain_of(run)
    assert job is not None
    assert job.read_result() is not None
    assert read_sample_log(job) == undisturbed(run, settings)
    for recovery in recoveries(job):
        print(describe(recovery))
    found = goodput(read_events(job.events)[0])
    assert found is not None
    good = found.share
    print(f"faults: {dict(chaos.done)}; goodput {good:.2f}")
    record_property("faults", dict(chaos.done))
    record_property("goodput", good)
    assert chaos.done, "no fault was made: the training is too short"

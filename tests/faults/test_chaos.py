"""A fault drawn at random every minute, for as many minutes as VITLINE_CHAOS_MINUTES says.

`make chaos` takes 20 minutes; without the variable it is a short form of 3. The seed is printed; to draw the
same faults again, set VITLINE_CHAOS_SEED.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import read_events
from pipeline.recovery import describe, recoveries
from pipeline.train.goodput import goodput
from pipeline.train.samplelog import read_sample_log
from tests.helpers.hosts import ROOT, Hosts
from tests.helpers.trainings import pretrain_of, trains, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = ROOT / "tests" / "integration" / "small.yaml"
INTERVAL_S = 60.0
BACK_S = 20.0  # after which a host that was taken comes back
STEPS_PER_MINUTE = 200
# What a driver that was killed or refused may end with; anything else is a finding.
ENDS = (-9, 8)


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
    steps = int(minutes * STEPS_PER_MINUTE)
    return [str(SMALL), f"root={root}", f"pretrain.duration={steps} steps", "pretrain.batch=48"]


def undisturbed(root: Path, minutes: float) -> dict[int, list[int]]:
    """Samples of each step; they do not depend on the network, so a tiny one on one rank will do."""
    command = [
        *(sys.executable, "-m", "launch", "run", *settings_of(root, minutes)),
        *("pretrain.gang.workers=1", "tracking.enabled=false", "--until", "pretrain"),
    ]
    environment = {**os.environ, "HOME": str(root.parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=900)
    job = pretrain_of(root / "small")
    assert job is not None
    return read_sample_log(job)


def test_a_fault_every_minute(
    hosts: Callable[..., Hosts], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    minutes = float(os.environ.get("VITLINE_CHAOS_MINUTES", "3"))
    seed = int(os.environ.get("VITLINE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
    print(f"seed {seed}, {minutes:g} minutes")
    expected = undisturbed(tmp_path / "alone", minutes)
    cluster = hosts(3)
    run = tmp_path / "run" / "small"
    arguments = [
        *settings_of(tmp_path / "run", minutes),
        *("pretrain.model.options.width=96", "pretrain.model.options.depth=4"),
        *("pretrain.gang.min_workers=1", "pretrain.gang.max_failures=1000"),
        *("cluster.wait_s=120", "tracking.enabled=false", "--until", "pretrain"),
    ]
    process = cluster.run(*arguments)
    wait_for(lambda: trains(run), process)
    chaos = Chaos(cluster, lambda: process, seed)
    began = struck = time.monotonic()
    while (code := process.poll()) != 0:
        if code is not None:
            assert code in ENDS, cluster.output()
            process = cluster.run(*arguments)
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
    assert read_sample_log(job) == expected
    for recovery in recoveries(job):
        print(describe(recovery))
    found = goodput(read_events(job.events)[0])
    assert found is not None
    good = found.share
    print(f"faults: {dict(chaos.done)}; goodput {good:.2f}")
    record_property("faults", dict(chaos.done))
    record_property("goodput", good)
    assert chaos.done, "no fault was made: the training is too short"

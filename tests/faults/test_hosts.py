"""Three hosts with addresses of their own: the same training as on one, and nothing lost whatever happens.

Every test ends with the same question (check_same): is the run complete, with the samples of an undisturbed
run on one rank in every step, and within rounding its losses?
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recovery import describe, recoveries
from pipeline.rundir import read_json
from tests.helpers.hosts import ROOT, Hosts
from tests.helpers.trainings import check_same, pretrain_of, reasons, trains, wait_for, worlds

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = ROOT / "tests" / "integration" / "small.yaml"
STEPS = 150
# Long enough to be caught in the middle: a step takes 0.1 s and more.
PRETRAIN = [
    f"pretrain.duration={STEPS} steps",
    "pretrain.batch=48",
    "pretrain.model.options.width=96",
    "pretrain.model.options.depth=4",
    "tracking.enabled=false",
    *("--until", "pretrain"),
]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pre-training on one rank of this machine, undisturbed."""
    root = tmp_path_factory.mktemp("alone")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "launch", "run", str(SMALL), f"root={root}", *PRETRAIN),
            "pretrain.gang.workers=1",
        ],
        cwd=ROOT,
        env={**os.environ, "HOME": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return root / "small"


def start(cluster: Hosts, root: Path, *settings: str, host: int = 0) -> Any:
    return cluster.run(str(SMALL), f"root={root}", *PRETRAIN, *settings, host=host)


def gang_hosts(cluster: Hosts) -> list[int]:
    """Hosts on which ranks run, without the head's, which holds the driver."""
    return [host for host in range(1, cluster.count) if cluster.titled(host, "RayTrainWorker")]


def kill_rank(cluster: Hosts) -> None:
    cluster.titled(gang_hosts(cluster)[0], "RayTrainWorker")[0].kill()


def kill_controller(cluster: Hosts) -> None:
    """The process of Ray Train that starts and watches the ranks."""
    found = [p for host in range(cluster.count) for p in cluster.titled(host, "TrainController")]
    found[0].kill()


def cut_host(cluster: Hosts) -> None:
    cluster.cut(gang_hosts(cluster)[0])


def show(run: Path, record: Callable[[str, object], None]) -> None:
    job = pretrain_of(run)
    assert job is not None
    for recovery in recoveries(job):
        print(describe(recovery))
        record(f"recovery_{recovery.attempt}", describe(recovery))


@pytest.mark.parametrize("fault", [kill_rank, kill_controller, cut_host])
def test_a_loss_costs_nothing_but_time(
    hosts: Callable[..., Hosts],
    tmp_path: Path,
    alone: Path,
    record_property: Callable[[str, object], None],
    fault: Callable[[Hosts], None],
) -> None:
    """Two ranks on three hosts of one core: there is room to go on."""
    cluster = hosts(3)
    run = tmp_path / "small"
    process = start(cluster, tmp_path)
    target = random.SystemRandom().randrange(6, 60)
    wait_for(lambda: trains(run, step=target), process)
    fault(cluster)
    assert process.wait(900) == 0, cluster.output()
    check_same(run, alone, STEPS)
    job = pretrain_of(run)
    assert job is not None
    assert job.read_generation() >= 2
    show(run, record_property)
    back = recoveries(job)
    assert [recovery.cause for recovery in back] == ["lost"]
    # What is known of the time adds up to all of it.
    parts = (back[0].detect_s or 0, back[0].tear_down_s or 0, back[0].start_s, back[0].load_s)
    assert sum(parts) + back[0].first_step_s == pytest.approx(back[0].total_s, abs=0.01)


def test_a_host_that_vanishes_leaves_a_smaller_gang(
    hosts: Callable[..., Hosts], tmp_path: Path, alone: Path, record_property: Callable[[str, object], None]
) -> None:
    cluster = hosts(3)
    run = tmp_path / "small"
    process = start(cluster, tmp_path, "pretrain.gang.workers=3", "pretrain.gang.min_workers=2")
    wait_for(lambda: trains(run, step=10), process)
    assert worlds(run) == {1: 3}
    victim = gang_hosts(cluster)[-1]
    cluster.cut(victim)
    cluster.kill_all(victim)
    assert process.wait(900) == 0, cluster.output()
    check_same(run, alone, STEPS)
    assert list(worlds(run).values())[-1] == 2
    show(run, record_property)


def test_a_host_that_joins_late_makes_the_gang_larger(
    hosts: Callable[..., Hosts], tmp_path: Path, alone: Path, record_property: Callable[[str, object], None]
) -> None:
    cluster = hosts(3, started=2)
    run = tmp_path / "small"
    settings = ["pretrain.gang.workers=3", "pretrain.gang.min_workers=2", "pretrain.log_every=1 steps"]
    process = start(cluster, tmp_path, *settings)
    wait_for(lambda: trains(run, step=5), process)
    assert worlds(run) == {1: 2}
    cluster.start_ray(2)
    assert process.wait(900) == 0, cluster.output()
    check_same(run, alone, STEPS)
    assert worlds(run) == {1: 2, 2: 3}
    job = pretrain_of(run)
    assert job is not None
    # It saved before it ended: nothing was done twice.
    assert [(r.cause, r.repeated) for r in recoveries(job)] == [("stopped", 0)]
    show(run, record_property)


@pytest.mark.parametrize("way", ["drain", "SIGTERM"])
def test_a_preempted_host_saves_first_and_is_no_failure(
    hosts: Callable[..., Hosts],
    tmp_path: Path,
    alone: Path,
    record_property: Callable[[str, object], None],
    way: str,
) -> None:
    cluster = hosts(3)
    run = tmp_path / "small"
    # One failure would be one too many.
    process = start(cluster, tmp_path, "pretrain.gang.max_failures=0")
    wait_for(lambda: trains(run, step=10), process)
    victim = gang_hosts(cluster)[0]
    if way == "drain":
        cluster.drain(victim, deadline_s=60)
    else:
        cluster.sigterm(victim)
    assert process.wait(900) == 0, cluster.output()
    check_same(run, alone, STEPS)
    job = pretrain_of(run)
    assert job is not None
    assert [(r.cause, r.repeated) for r in recoveries(job)] == [("stopped", 0)]
    states = [(state, reason.split(":")[0]) for state, reason in reasons(run)]
    assert ("stopped", "preempted (time 1)") in states
    show(run, record_property)


def test_a_driver_that_died_is_restarted_on_another_host(
    hosts: Callable[..., Hosts], tmp_path: Path, alone: Path, record_property: Callable[[str, object], None]
) -> None:
    cluster = hosts(3)
    run = tmp_path / "small"
    process = start(cluster, tmp_path)
    wait_for(lambda: trains(run, step=10), process)
    process.kill()
    process.wait()
    holder = read_json(run / "lease.json")
    assert holder is not None
    # While its heartbeat is fresh, a driver elsewhere is refused, and told by whom.
    while (again := start(cluster, tmp_path, host=1)).wait(900) == 8:
        assert f"process {holder['pid']} on h0" in cluster.output()
    assert again.returncode == 0, cluster.output()
    check_same(run, alone, STEPS)
    show(run, record_property)


def test_a_head_that_is_restarted_takes_the_run_up_again(
    hosts: Callable[..., Hosts], tmp_path: Path, alone: Path, record_property: Callable[[str, object], None]
) -> None:
    """Ray's own state is gone with its head; ours is in the run's directory."""
    cluster = hosts(3)
    run = tmp_path / "small"
    process = start(cluster, tmp_path, host=1)
    wait_for(lambda: trains(run, step=10), process)
    cluster.kill_ray(0)
    # It does not wait for ever for a cluster that is gone, says so, and leaves the run to the next driver.
    assert process.wait(900) == 75, cluster.output()
    assert f"Ray's head of {cluster.cluster} has not answered" in cluster.output()
    assert "Traceback" not in cluster.output()
    assert not (run / "lease.json").exists()
    for host in (1, 2):
        cluster.kill_all(host)
        cluster.ray[host].wait(20)
    for host in range(3):
        cluster.start_ray(host)
    again = start(cluster, tmp_path, host=1)
    assert again.wait(900) == 0, cluster.output()
    check_same(run, alone, STEPS)
    show(run, record_property)


def test_a_node_that_cannot_reach_the_driver_is_named(hosts: Callable[..., Hosts], tmp_path: Path) -> None:
    """Jobs that it took would never be heard of again."""
    cluster = hosts(3)
    cluster.hide(2, 1)
    process = start(cluster, tmp_path, host=1)
    assert process.wait(400) == 7, cluster.output()
    assert f"1 of 3 nodes of {cluster.cluster} did not answer in" in cluster.output()
    assert f": {cluster.address(2)}\n" in cluster.output()
    assert f"nodes that reach the driver's address, {cluster.address(1)}" in cluster.output()
    assert "Traceback" not in cluster.output()

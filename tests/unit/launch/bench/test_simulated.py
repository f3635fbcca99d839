"""The simulated cluster under the real queue and workload: small cases whose every second is known."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from launch.bench.fanout import main
from launch.bench.simulate import simulate
from launch.bench.simulated import SimulatedCluster, World, drawn_failures
from pipeline.errors import EnvironmentUnfit
from pipeline.graph import Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from pipeline.workload import Workload
from tests.helpers.planned import item
from tests.helpers.synthetic_run import synthetic_config

Reports = list[tuple[float, str, int, str]]


def small_world(nodes: int, repair_s: float = 40.0) -> World:
    return World(
        nodes=nodes,
        gpus=1,
        cpus=8,
        repair_s=repair_s,
        detect_s=5,
        gang_start_s=10,
        task_start_s=1,
        checkpoint_s=100,
    )


def run(
    root: Path,
    world: World,
    jobs: list[Planned],
    seconds: dict[str, float],
    failures: Iterable[tuple[float, int]] = (),
) -> tuple[SimulatedCluster, Reports]:
    """Drives `jobs`; reports are (time, name, ranks, state)."""
    config = synthetic_config(root, cluster={"address": "simulated", "wait_s": 60})
    cluster, reports = SimulatedCluster(world, seconds, failures), []
    paths = RunDir(root / "run")
    Workload(
        config,
        paths,
        cluster,
        Lease(paths.lease),
        threading.Event(),
        set(),
        lambda job, state, reason: reports.append((cluster.now(), job.job.name, job.job.workers, state)),
        lambda: None,
    ).do(jobs)
    return cluster, reports


def gang(*sizes: int) -> Planned:
    return item("pretrain", gpus=1, workers=max(sizes), sizes=sizes)


def small(name: str) -> Planned:
    return item(name, gpus=1)


def test_the_longest_job_starts_first(tmp_path: Path) -> None:
    seconds = {"choose/a": 10.0, "choose/b": 30.0, "choose/c": 20.0}
    cluster, reports = run(tmp_path, small_world(2), [small(name) for name in seconds], seconds)
    assert [report for report in reports if report[3] == "done"] == [
        (21.0, "choose/c", 0, "done"),
        (31.0, "choose/b", 0, "done"),
        (32.0, "choose/a", 0, "done"),
    ]
    # A second of each attempt is its start; two devices for 32 s.
    account = cluster.account
    assert (account.useful_s, account.held_s, account.alive_s) == (60.0, 63.0, 64.0)


def test_a_job_whose_node_fails_begins_anew_elsewhere(tmp_path: Path) -> None:
    cluster, reports = run(
        tmp_path, small_world(1), [small("choose/a")], {"choose/a": 100.0}, [(50.0, 0), (60.0, 0)]
    )
    # Noticed at 55, the node is back at 90; a failure of a node that is down is none.
    assert reports == [
        (0.0, "choose/a", 0, "running"),
        (55.0, "choose/a", 0, "waiting"),
        (55.0, "choose/a", 0, "waiting"),  # no node is left
        (90.0, "choose/a", 0, "running"),
        (191.0, "choose/a", 0, "done"),
    ]
    assert (cluster.account.failures, cluster.account.hit) == (1, 1)
    assert (cluster.account.useful_s, cluster.account.held_s) == (100.0, 55.0 + 101.0)


def test_a_gang_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    # Starts at 10, so at 250 it has worked 240 and saved 200; lost at 255, whole again at 290.
    cluster, reports = run(tmp_path, small_world(2), [gang(2)], {"pretrain": 1000.0}, [(250.0, 0)])
    assert [(at, state) for at, _, _, state in reports] == [
        (0.0, "running"),
        (255.0, "waiting"),
        (255.0, "waiting"),  # one node is too few
        (290.0, "running"),
        (290.0 + 10 + 800, "done"),
    ]
    assert cluster.account.useful_s == 2 * 1000
    assert cluster.account.held_s == 2 * 255 + 2 * 810


def test_an_elastic_gang_goes_on_smaller_and_grows_when_the_node_is_back(tmp_path: Path) -> None:
    _, reports = run(tmp_path, small_world(2), [gang(1, 2)], {"pretrain": 1000.0}, [(250.0, 0)])
    assert [(at, ranks, state) for at, _, ranks, state in reports] == [
        (0.0, 2, "running"),
        (255.0, 2, "waiting"),
        (255.0, 1, "running"),
        (290.0, 1, "running"),  # grows: asked to save
        (290.0, 1, "stopped"),
        (290.0, 2, "running"),
        # One rank worked from 265 to 290, half as fast.
        (290.0 + 10 + 1000 - 200 - 12.5, 2, "done"),
    ]


def test_small_jobs_do_not_take_what_a_gang_needs_to_grow(tmp_path: Path) -> None:
    names = [f"choose/{index}" for index in range(4)]
    seconds = {"pretrain": 1000.0, **dict.fromkeys(names, 100.0)}
    jobs = [gang(1, 2), *map(small, names)]
    _, reports = run(tmp_path, small_world(3, repair_s=2000.0), jobs, seconds, [(250.0, 0)])
    # Two nodes are left, and choose/2 has one of them until 303. Then the gang gets it, not choose/3, though
    # it is only looked at each 10 s whether it can grow.
    assert [(at, name, ranks) for at, name, ranks, state in reports if state == "running"] == [
        (0.0, "pretrain", 2),
        (0.0, "choose/0", 0),
        (101.0, "choose/1", 0),
        (202.0, "choose/2", 0),
        (255.0, "pretrain", 1),
        (312.0, "pretrain", 1),  # grows
        (312.0, "pretrain", 2),
        (312.0 + 10 + 1000 - 200 - 23.5, "choose/3", 0),
    ]


def test_nodes_that_stay_away_are_not_waited_for_for_ever(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnfit, match="needs 2 GPU, the cluster has 1"):
        run(tmp_path, small_world(2, repair_s=100.0), [gang(2)], {"pretrain": 1000.0}, [(250.0, 0)])


def test_a_whole_run_is_the_same_each_time_and_undisturbed_near_its_ideal(tmp_path: Path) -> None:
    world, rows = World(nodes=8), []
    for number, rate in enumerate((0.0, 0.5, 0.5)):
        rows.append(simulate(world, 97, rate, 0, tmp_path / str(number)))
    quiet, *failing = rows
    assert (quiet.jobs, quiet.failures, quiet.jobs_failed) == (99, 0, 0)
    assert 1 <= quiet.ratio < 1.05
    assert {(row.failures, row.makespan_h, row.goodput) for row in failing} == {
        (failing[0].failures, failing[0].makespan_h, failing[0].goodput)
    }
    assert failing[0].makespan_h > quiet.makespan_h
    assert failing[0].goodput < quiet.goodput


def test_failures_come_as_often_as_they_should() -> None:
    failures = drawn_failures(World(nodes=10), 6.0, 1)
    times = [next(failures)[0] for _ in range(6000)]
    assert times == sorted(times)
    assert times[-1] / 3600 == pytest.approx(1000, rel=0.05)
    assert list(drawn_failures(World(), 0.0, 1)) == []


def test_the_command_writes_a_line_for_each_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.csv"
    options = ["--nodes", "8", "--transfers", "97", "--checkpoint-minutes", "3", "--csv", str(figures)]
    main(["--simulate", *options, "--failures-per-hour", "0", "0.5"])
    rows = list(csv.DictReader(figures.open()))
    assert [(row["jobs"], row["failures_per_hour"], row["checkpoint_s"]) for row in rows] == [
        ("99", "0.0", "180.0"),
        ("99", "0.5", "180.0"),
    ]
    assert f"makespan_h {rows[1]['makespan_h']}" in capsys.readouterr().out

"""`vitline node` on three hosts: a worker that has to go gives its ranks time to save, the run goes on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.recovery import describe, recoveries
from tests.helpers.hosts import ROOT, Hosts
from tests.helpers.trainings import pretrain_of, reasons, trains, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = [
    str(ROOT / "tests" / "integration" / "small.yaml"),
    # Long enough to be caught in the middle; little else to do.
    "pretrain.duration=150 steps",
    "pretrain.batch=48",
    "pretrain.model.options.width=96",
    "pretrain.model.options.depth=4",
    "pretrain.gang.max_failures=0",
    "cluster.wait_s=120",
    "transfer.datasets=[digits]",
    "transfer.seeds=[0]",
    "transfer.starts=[pretrained]",
    "transfer.protocol.learning_rates=[0.1]",
    "tracking.enabled=false",
]


def test_a_worker_that_is_told_to_go_drains_its_node(hosts: Callable[..., Hosts], tmp_path: Path) -> None:
    cluster = hosts(3, started=0)
    run = tmp_path / "small"
    logs = [tmp_path / f"node-{host}.log" for host in range(3)]
    nodes = [
        cluster.on(
            host,
            *(sys.executable, "-m", "launch", "node", *SETTINGS, f"root={tmp_path}"),
            *("--nodes", "3", "--min-nodes", "2", "--index", str(host), "--job", "one"),
            *("--hosts", ",".join(cluster.address(each) for each in range(3))),
            *("--cpus", "1", "--gpus", "0", "--preflight", "off"),
            log=logs[host],
        )
        for host in range(3)
    ]
    wait_for(lambda: trains(run, step=10), nodes[0])
    victim = next(host for host in (1, 2) if cluster.titled(host, "RayTrainWorker"))
    nodes[victim].send_signal(signal.SIGTERM)
    codes = [node.wait(600) for node in nodes]
    text = "\n".join(log.read_text() for log in logs)
    # It does not wait for a run that can do without it.
    assert codes == [75 if host == victim else 0 for host in range(3)], text
    assert "this node has to go" in logs[victim].read_text()
    job = pretrain_of(run)
    assert job is not None
    assert job.read_result() is not None
    # All ranks saved: nothing was done twice, and nothing failed.
    assert [(r.cause, r.repeated) for r in recoveries(job)] == [("stopped", 0)], text
    states = [(state, reason.split(":")[0]) for state, reason in reasons(run)]
    assert ("stopped", "preempted (time 1)") in states
    for recovery in recoveries(job):
        print(describe(recovery))

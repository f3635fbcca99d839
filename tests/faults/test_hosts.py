"""Three hosts with addresses of their own: the same run as on one, and nothing lost when one is cut off."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import read_events
from pipeline.rundir import JobDir, read_json
from pipeline.train.samplelog import read_sample_log

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = Path(__file__).resolve().parents[1] / "integration" / "small.yaml"
PRETRAIN = ["pretrain.duration=80 steps", "pretrain.batch=24"]
STEPS = list(range(1, 81))


def pretrain_of(run: Path) -> JobDir | None:
    for file in (run / "jobs").glob("*/job.json"):
        job = read_json(file)
        if job is not None and job["stage"] == "pretrain":
            return JobDir(file.parent)
    return None


def progress(run: Path) -> list[dict[str, Any]]:
    job = pretrain_of(run)
    return [e for e in read_events(job.events)[0] if e["event"] == "progress"] if job else []


def wait_for(condition: Callable[[], Any], process: Any, timeout_s: float = 240) -> Any:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s, process {process.poll()}")


def run_alone(root: Path, hosts: Any) -> Path:
    """The same pre-training on one rank of one host."""
    process = hosts.run(
        str(SMALL),
        f"root={root}",
        *PRETRAIN,
        "pretrain.gang.workers=1",
        "--until",
        "pretrain",
        "--address",
        f"{hosts.address(0)}:6379",
    )
    assert process.wait(300) == 0, hosts.output(len(hosts.commands) - 1)
    return root / "small"


def check_same(run: Path, alone: Path) -> None:
    job, reference = pretrain_of(run), pretrain_of(alone)
    assert job is not None
    assert reference is not None
    assert sorted(read_sample_log(job)) == STEPS
    assert read_sample_log(job) == read_sample_log(reference)
    losses = {e["step"]: e["loss"] for e in progress(run)}
    expected = {e["step"]: e["loss"] for e in progress(alone)}
    assert losses == pytest.approx(expected, rel=1e-4)


def test_three_hosts_train_like_one_and_survive_the_loss_of_one(
    hosts: Callable[..., Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A gang of two ranks on three hosts of one core; the host of one rank vanishes for good."""
    cluster = hosts(3, cpus=1)
    alone = run_alone(tmp_path / "alone", cluster)
    run = tmp_path / "three" / "small"
    process = cluster.run(
        str(SMALL),
        f"root={tmp_path / 'three'}",
        *PRETRAIN,
        "--until",
        "pretrain",
        "--address",
        f"{cluster.address(0)}:6379",
    )
    wait_for(lambda: any(e["step"] >= 10 for e in progress(run)), process)
    job = pretrain_of(run)
    assert job is not None
    busy = ranks_by_host(cluster, job)
    # The head's host holds the driver, so the victim is another.
    victim = next(host for host in busy if host != 0)
    cut_at = time.time()
    cluster.cut(victim)
    assert process.wait(400) == 0, cluster.output(1)
    check_same(run, alone)
    assert job.read_generation() >= 2
    again = next(e["time"] for e in progress(run) if e["attempt"] > 1)
    record_property("fault_to_next_step_s", round(again - cut_at, 1))
    print(f"fault to next training step: {again - cut_at:.1f} s")


def ranks_by_host(cluster: Any, job: JobDir) -> list[int]:
    """Hosts on which a rank of the present attempt runs, by the sockets of its processes."""
    import subprocess

    found = []
    for host in range(cluster.count):
        pids = subprocess.run(
            ["ip", "netns", "pids", f"vitline-h{host}"], capture_output=True, text=True, check=True
        ).stdout.split()
        titles = [Path(f"/proc/{pid}/cmdline") for pid in pids]
        if any(b"RayTrainWorker" in title.read_bytes() for title in titles if title.exists()):
            found.append(host)
    return found

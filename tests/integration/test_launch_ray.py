"""`vitline launch ray` against a real Ray cluster with token authentication, its dashboard on loopback."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import node_ray

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@dataclass(frozen=True)
class Cluster:
    place: Path
    port: int
    token: Path

    def environment(self) -> dict[str, str]:
        # The cluster's own PATH: where `vitline` is found by the job.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**clean, "PATH": path, "HOME": str(self.place), "RAY_USAGE_STATS_ENABLED": "0"}

    def launch(self, *arguments: str, token: Path | None) -> subprocess.CompletedProcess[str]:
        settings = {"dashboard": f"http://127.0.0.1:{self.port}", "token_file": token and str(token)}
        file = self.place / "cluster.yaml"
        file.write_text(json.dumps({"ray": settings}))
        config = ROOT / "tests/integration/small.yaml"
        return subprocess.run(
            [
                *(sys.executable, "-m", "launch", "launch", "ray", str(config), *arguments),
                *("tracking.enabled=false", "--cluster", str(file), "--json"),
            ],
            cwd=self.place,
            env={**self.environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    place = Path(tempfile.mkdtemp(prefix="vlray-"))
    token = place / "token"
    node_ray.make_token(token)
    port = node_ray.free_port("127.0.0.1", node_ray.preferred_port(f"dashboard {os.getpid()}"))
    made = Cluster(place, port, token)
    with (place / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                "--include-dashboard=true",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={port}",
                "--node-ip-address=127.0.0.1",
                f"--port={node_ray.free_port('127.0.0.1', port + 1)}",
                f"--ray-client-server-port={node_ray.free_port('127.0.0.1', port + 301)}",
                f"--dashboard-agent-listen-port={node_ray.free_port('127.0.0.1', port + 601)}",
                f"--temp-dir={place}",
                "--object-store-memory=100000000",
            ],
            env={
                **made.environment(),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
                "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            },
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: node_ray.answers(f"127.0.0.1:{port}"), "the dashboard did not answer")
        yield made
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def wait_until(ready: Callable[[], bool], message: str, timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < deadline, message
        time.sleep(0.5)


def test_without_the_token_or_with_another_it_says_so(cluster: Cluster) -> None:
    done = cluster.launch(token=None)
    assert done.returncode == 7, done.stderr
    assert "the cluster wants a token" in done.stderr
    other = cluster.place / "other"
    other.write_text(secrets.token_hex(32))
    done = cluster.launch(token=other)
    assert done.returncode == 7, done.stderr
    assert "another cluster's token" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_drivers_exit_code_comes_back(cluster: Cluster) -> None:
    done = cluster.launch("name=refused", "pretrain.batch=15", token=cluster.token)
    assert done.returncode == 2, done.stderr
    assert "found:" in done.stderr  # the driver's own message, out of the job's log
    kept = json.loads((cluster.place / "runs/refused/launch/submission.json").read_text())
    assert kept["exit_code"] == 2
    assert kept["answer"]["job"].endswith("-a1")
    # It ended, so the same command is the next attempt.
    again = cluster.launch("name=refused", "pretrain.batch=15", token=cluster.token)
    assert "-a2" in again.stderr
    assert cluster.token.read_text() not in done.stderr + again.stderr


def test_a_job_that_lives_is_attached_to(cluster: Cluster) -> None:
    first = cluster.launch("pretrain.duration=100000 steps", "--detach", token=cluster.token)
    assert first.returncode == 0, first.stderr
    second = cluster.launch("pretrain.duration=100000 steps", "--detach", token=cluster.token)
    assert second.returncode == 0, second.stderr
    one, two = json.loads(first.stdout), json.loads(second.stdout)
    assert one["job"] == two["job"]
    assert (one["attached"], two["attached"]) == (False, True)
    assert two["next"]["stop"].startswith("ray job stop ")
    run = cluster.place / "runs/small"
    wait_until(lambda: (run / "events.jsonl").exists(), "the run did not start")

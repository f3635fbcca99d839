"""`vitline launch local`: the run itself in the foreground, or detached; its exit code is ours."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from launch.cluster_config import ClusterConfig
from launch.submission import launch
from launch.targets.request import Request, make_request
from pipeline.config_io import load_config
from pipeline.rundir import read_json

ROOT = Path(__file__).resolve().parents[2]


def request_of(directory: Path, *overrides: str) -> Request:
    config = load_config(ROOT / "tests/integration/small.yaml", ["tracking.enabled=false", *overrides])
    return make_request(config, ClusterConfig(), directory, nodes=1, gpus_per_node=0)


def put(request: Request, *, detach: bool) -> int:
    return launch("local", request, render_only=False, out=None, detach=detach, again="AGAIN", as_json=False)


@pytest.fixture(autouse=True)
def _our_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_runs_exit_code_is_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    request = request_of(tmp_path, "pretrain.batch=15")  # not divisible by two ranks
    assert put(request, detach=False) == 2
    assert "found:" in capfd.readouterr().err
    kept = read_json(request.launch / "submission.json")
    assert kept is not None
    assert kept["exit_code"] == 2
    done = subprocess.run(["sh", "-n", str(request.launch / "run.sh")], check=False)
    assert done.returncode == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_detached_run_is_stopped_by_the_command_that_was_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = request_of(tmp_path, "pretrain.duration=100000 steps")
    assert put(request, detach=True) == 0
    printed = capfd.readouterr().out
    pid = int(printed.split("kill -TERM ")[1].split()[0])
    process = psutil.Process(pid)
    log = request.launch / "local.log"
    deadline = time.monotonic() + 120
    while "pretrain  running" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) in (75, None), log.read_text()
    outcome = read_json(request.run / "result.json")
    assert outcome is not None
    assert outcome["exit_code"] == 75

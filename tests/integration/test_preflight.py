"""`vitline run` looks at the nodes of a cluster before a gang over several of them starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "tests" / "integration" / "small.yaml"
# Two nodes of one CPU each, and the commands in argv one after the other.
_CLUSTER = """
import json, subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
ends = []
for options in json.loads(sys.argv[1]):
    command = [sys.executable, "-m", "launch", "run", *options, "--address", cluster.address]
    done = subprocess.run(command, capture_output=True, text=True)
    ends.append([done.returncode, done.stdout + done.stderr])
cluster.shutdown()
print(json.dumps(ends))
"""


def run(home: Path, *commands: list[str]) -> list[tuple[int, str]]:
    environment = {
        **os.environ,
        "HOME": str(home),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", _CLUSTER, json.dumps(commands)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    ends: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return [(code, text) for code, text in ends]


def test_an_unfit_cluster_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    settings = [
        str(SMALL),
        f"root={tmp_path / 'runs'}",
        "tracking.enabled=false",
        "pretrain.duration=2 steps",
        "pretrain.optimizer.warmup=0 steps",
        "--until",
        "pretrain",
    ]
    # Before the datasets are prepared, which would find it too.
    away = "datasets.away={source: webdataset, train: /nowhere/0.tar, test: /nowhere/1.tar}"
    unfit, fit = run(tmp_path, [*settings[:-2], away, "pretrain.dataset=away", *settings[-2:]], settings)
    assert unfit[0] == 7, unfit[1]
    assert "/nowhere/0.tar" in unfit[1]
    assert "Traceback" not in unfit[1]
    assert "running" not in unfit[1]
    assert fit[0] == 0, fit[1]
    assert "preflight: 2 nodes are fit" in fit[1]
    report = json.loads((tmp_path / "runs" / "small" / "launch" / "doctor.json").read_text())
    assert report["fit"]
    assert len(report["nodes"]) == 2

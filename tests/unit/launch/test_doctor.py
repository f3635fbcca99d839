"""The doctor's examination of this machine, alone and as a cluster of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.doctor_gang import Member
from launch.doctor_node import examine, gpus

ROOT = Path(__file__).resolve().parents[3]
SMALL = ROOT / "tests" / "integration" / "small.yaml"


def test_a_node_says_what_it_is_and_raises_nothing(tmp_path: Path) -> None:
    shard = tmp_path / "000000.tar"
    shard.write_bytes(b"x" * 1000)
    request = {
        "quick": False,
        "directory": str(tmp_path / "not" / "there"),
        "config": {"name": "x"},
        "shards": [str(shard), str(tmp_path / "gone.tar")],
        "manifest": str(tmp_path / "manifest.json"),
    }
    facts = examine(request)
    assert json.loads(json.dumps(facts)), "plain types only"
    assert facts["config"].startswith("refused: the configuration: ")
    assert facts["versions"]["deepspeed"]
    assert len(facts["versions"]["code"]) == 12
    assert facts["disk_bytes"] > 0
    assert facts["memory_bytes"] > 0
    assert facts["gflops"][0] > 0.1
    assert facts["data"]["manifest"] == "unreadable: No such file or directory"
    reads = facts["data"]["shards"]
    assert isinstance(reads[str(shard)], float)
    assert reads[str(tmp_path / "gone.tar")].startswith("FileNotFoundError")


def test_gpus_are_read_from_the_tools_table() -> None:
    first = "NVIDIA H100 80GB HBM3, 570.86, 81559, 4, 0, Not Active"
    table = f"{first}\nNVIDIA H100 80GB HBM3, 570.86, 81559, 0, [N/A], Active\n"
    found = gpus(lambda command: table)
    assert [gpu["memory.used"] for gpu in found] == ["4", "0"]
    assert found[1]["clocks_throttle_reasons.hw_slowdown"] == "Active"

    def broken(command: object) -> str:
        raise FileNotFoundError

    assert gpus(broken) == []


def test_members_see_each_others_files_and_ports(tmp_path: Path) -> None:
    here, there = Member(), Member()
    text = here.write(str(tmp_path), "a")
    assert there.read(str(tmp_path), ["a", "b"], 0.0) == [text, "error: No such file or directory"]
    assert here.write(str(tmp_path / "a" / "x"), "a").startswith("error: ")
    _, port = here.listen()
    assert there.reach([("localhost", "127.0.0.1", port)]) == [""]
    (fault,) = there.reach([("localhost", "127.0.0.1", there.free_port())])
    assert "127.0.0.1" in fault
    (name,) = there.reach([("no-such-host.invalid", "127.0.0.1", port)])
    assert "does not resolve" in name


def test_a_gang_of_one_sums_rightly() -> None:
    member = Member()
    answer = member.all_reduce(0, 1, "127.0.0.1", member.free_port(), pairs=True)
    assert (answer["right"], answer["error"], answer["pairs"]) == (True, "", {})


_TWO_NODES = """
import json, os, subprocess, sys
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", "launch", "doctor", sys.argv[1], "root=" + sys.argv[2], "--json"]
done = subprocess.run([*command, "--address", cluster.address], capture_output=True, text=True)
open_to_all = subprocess.run([*command, "--quick", "--allow-open-ray", "--address", cluster.address],
                             capture_output=True, text=True)
cluster.shutdown()
print(json.dumps([done.returncode, done.stdout, open_to_all.returncode, done.stderr[-2000:]]))
"""


@pytest.mark.slow
@pytest.mark.ray
def test_two_nodes_meet(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_metrics_collection": "0",
    }
    command = [sys.executable, "-c", _TWO_NODES, str(SMALL), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=400)
    assert done.returncode == 0, done.stderr
    code, text, open_code, errors = json.loads(done.stdout.splitlines()[-1])
    assert text, errors
    report = json.loads(text)
    checks = {check["name"]: check for check in report["checks"]}
    assert len(report["nodes"]) == 2
    for name in (
        "gang size",
        "nodes",
        "same software",
        "same settings",
        "shared storage",
        "ports",
        "all-reduce",
    ):
        assert checks[name]["level"] == "pass", checks[name]
    # This cluster has no authentication: a fault, unless the user allows it.
    failed = [name for name, check in checks.items() if check["level"] == "fail"]
    if failed:
        assert failed == ["Ray's ports"]
        assert (code, open_code) == (7, 0)
    else:
        assert (code, open_code) == (0, 0)
    saved = json.loads((tmp_path / "runs" / "small" / "launch" / "doctor.json").read_text())
    assert len(saved["nodes"]) == 2

"""`vitline launch slurm` with Slurm's own daemons: a controller and two nodes on this machine.

apt-get install slurmctld slurmd slurm-client      (Debian); the daemons must be started by root
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
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

SETTINGS = """\
ClusterName=vitline
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
PropagateResourceLimits=NONE
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{second}] CPUs=2 RealMemory=1000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    place: Path
    environment: dict[str, str]

    def call(self, *argv: str) -> str:
        done = subprocess.run(
            argv,
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done.stdout

    def state(self, job: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.call("scontrol", "show", "job", job)))

    def launch(self, *overrides: str) -> str:
        """The number of the submitted job."""
        answer = self.call(
            *(sys.executable, "-m", "launch", "launch", "slurm", str(ROOT / "tests/integration/small.yaml")),
            *("transfer.datasets=[digits]", "transfer.seeds=[0]", "tracking.enabled=false", *overrides),
            *("--nodes=2", f"--cluster={self.place}/cluster.yaml", "--json"),
        )
        return str(json.loads(answer)["job"])

    def wait_for(self, job: str, ready: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    file.read_text() for file in self.place.glob(f"runs/*/launch/slurm-{job}.log")
                )
                pytest.fail(f"{self.state(job)}\n{logs}")
            time.sleep(1)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("slurmctld", "slurmd", "sbatch")):
        pytest.skip("needs root and Slurm's daemons: apt-get install slurmctld slurmd slurm-client")
    place = Path(tempfile.mkdtemp(prefix="vlslurm-"))
    ports = [node_ray.free_port("127.0.0.1", 17000 + os.getpid() % 900 + 1000 * i) for i in range(2)]
    second = node_ray.free_port("127.0.0.1", ports[1] + 1)
    assert second == ports[1] + 1
    host = socket.gethostname().split(".")[0]
    text = SETTINGS.format(host=host, place=place, port=ports[0], first=ports[1], second=second)
    (place / "slurm.conf").write_text(text)
    for directory in ("state", "n1", "n2"):
        (place / directory).mkdir()
    vitline = place / "vitline"
    vitline.write_text(f'#!/bin/sh\nexec {sys.executable} -m launch "$@"\n')
    vitline.chmod(0o755)
    cluster = {"cpus_per_node": 2, "slurm": {"command": str(vitline), "time": "30", "max_requeues": 5}}
    (place / "cluster.yaml").write_text(json.dumps(cluster))
    environment = {
        **os.environ,
        "SLURM_CONF": str(place / "slurm.conf"),
        "PYTHONPATH": str(ROOT),
        "HOME": str(place),
    }
    slurm = Slurm(place, environment)
    daemons = [
        subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for argv in (["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"])
    ]
    try:
        slurm.wait_for("", lambda: slurm.call("sinfo", "-h", "-t", "idle", "-o", "%D").strip() == "2", 60)
        yield slurm
    finally:
        subprocess.run(["scancel", "--user=root"], env=environment, capture_output=True, check=False)
        deadline = time.monotonic() + 60
        while slurm.call("squeue", "-h", "-t", "running,completing").strip() and time.monotonic() < deadline:
            time.sleep(1)
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(60)
        shutil.rmtree(place, ignore_errors=True)


def test_where_no_controller_answers_the_files_are_written(tmp_path: Path) -> None:
    if not shutil.which("sbatch"):
        pytest.skip("sbatch is not installed: apt-get install slurm-client")
    settings = {"ClusterName": "none", "SlurmctldHost": "localhost(127.0.0.1)", "AuthType": "auth/none"}
    settings |= {"CredType": "cred/none", "SlurmctldPort": "6", "NodeName": "n1 CPUs=1"}
    settings |= {"PartitionName": "debug Nodes=ALL Default=YES"}
    (tmp_path / "slurm.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    environment = {**os.environ, "SLURM_CONF": str(tmp_path / "slurm.conf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "launch", "slurm", str(ROOT / "tests/integration/small.yaml")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "no Slurm controller answers here" in done.stderr
    assert list(tmp_path.glob("runs/*/launch/job.sbatch"))


def test_a_run_on_two_nodes_finishes(slurm: Slurm) -> None:
    job = slurm.launch("name=whole")
    slurm.wait_for(job, lambda: slurm.state(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"))
    run = slurm.place / "runs/whole"
    log = (run / f"launch/slurm-{job}.log").read_text()
    assert slurm.state(job)["JobState"] == "COMPLETED", log
    assert json.loads((run / "launch/exit.json").read_text())["exit_code"] == 0
    assert json.loads((run / f"launch/slurm-{job}.0/alive.json").read_text())["alive"] == 2
    assert (run / "report/report.html").exists()


def test_the_limit_requeues_and_a_persons_stop_does_not(slurm: Slurm) -> None:
    job = slurm.launch("name=long", "pretrain.duration=100000 steps")
    run = slurm.place / "runs/long"

    def trains(attempt: int) -> bool:
        starts = [file for file in run.glob("jobs/*/events.jsonl") if '"pretrain"' in _name(file)]
        return any(
            json.loads(line)["event"] == "progress" and json.loads(line)["attempt"] == attempt
            for file in starts
            for line in file.read_text().splitlines()
        )

    slurm.wait_for(job, lambda: trains(1))
    # What Slurm sends `signal_s` before the limit.
    slurm.call("scancel", "--batch", "--signal=USR1", job)
    slurm.wait_for(job, lambda: slurm.state(job)["JobState"] == "PENDING")
    assert (run / f"launch/slurm-{job}.0/exit_code").read_text() == "75\n"
    # Slurm holds a requeued job back for two minutes.
    slurm.call("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.wait_for(job, lambda: trains(2))
    slurm.call("scancel", "--batch", "--signal=TERM", job)
    slurm.wait_for(job, lambda: slurm.state(job)["JobState"] not in ("RUNNING", "COMPLETING"))
    state = slurm.state(job)
    log = (run / f"launch/slurm-{job}.log").read_text()
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "75:0", "1"), log
    assert len((run / f"launch/slurm-{job}.requeues").read_text().splitlines()) == 1


def _name(events: Path) -> str:
    return (events.parent / "job.json").read_text()

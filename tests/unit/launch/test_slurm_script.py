"""The batch script at work, with stand-ins for Slurm's own commands: when it requeues and when not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launch.cluster_config import ClusterConfig
from launch.targets import slurm
from launch.targets.request import make_request
from pipeline.config_io import load_config

ROOT = Path(__file__).resolve().parents[3]
# Leaves what the head would leave, and ends as a task that Slurm killed would.
SRUN = """#!/bin/bash
echo "$@" >>{place}/srun
meet=$(printf '%s\\n' "$@" | sed -n 's/^--meet=//p')
touch {place}/runs-now
while [ -e {place}/endless ] && [ ! -e "$meet/stop" ]; do sleep 0.05; done
[ {code} = none ] || echo {code} >"$meet/exit_code"
exit 137
"""
# Slurm ends the script with the requeue.
SCONTROL = """#!/bin/bash
[ "$1" = show ] && {{ echo n1; echo n2; exit; }}
echo "$@" >>{place}/requeued
kill -9 $PPID
"""


class Job:
    """One job of Slurm whose script is started as often as it asks for it."""

    def __init__(self, place: Path, code: str, max_requeues: int = 2) -> None:
        self.place = place
        config = load_config(ROOT / "tests/integration/small.yaml")
        settings = ClusterConfig.model_validate({"slurm": {"max_requeues": max_requeues}})
        request = make_request(config, settings, place, nodes=2, gpus_per_node=0)
        self.launch = request.launch
        self.launch.mkdir(parents=True)
        self.script = place / slurm.SCRIPT
        self.script.write_text(slurm.render(request).files[slurm.SCRIPT])
        (place / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (place / "bin" / name).write_text(text.format(place=place, code=code))
            (place / "bin" / name).chmod(0o755)

    def start(self, restart: int = 0) -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{self.place / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restart),
            "SLURM_JOB_NODELIST": "n[1-2]",
        }
        return subprocess.Popen(
            ["bash", str(self.script)], env=variables, stdout=subprocess.PIPE, text=True, cwd=self.place
        )

    def run(self, restart: int = 0) -> tuple[int, str]:
        process = self.start(restart)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """Signal the script while its task runs."""
        (self.place / "endless").touch()
        process = self.start()
        deadline = time.monotonic() + 60
        while not (self.place / "runs-now").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    @property
    def requeued(self) -> list[str]:
        file = self.place / "requeued"
        return file.read_text().splitlines() if file.exists() else []


def test_an_unfinished_run_is_requeued_as_often_as_it_may_be(tmp_path: Path) -> None:
    job = Job(tmp_path, "75")
    assert [job.run(restart)[0] for restart in range(2)] == [-9, -9]
    code, said = job.run(2)
    assert code == 75
    assert "vitline: requeued 2 times already; submit again to continue" in said
    assert job.requeued == ["requeue 7", "requeue 7"]
    # Each start has a meeting place of its own, and both hosts are named.
    assert sorted(path.name for path in job.launch.glob("slurm-7.[0-9]")) == [
        f"slurm-7.{n}" for n in range(3)
    ]
    assert all("--hosts=n1,n2" in line for line in (tmp_path / "srun").read_text().splitlines())


@pytest.mark.parametrize(("code", "ends"), [("0", 0), ("7", 7), ("none", 137)])
def test_other_ends_are_the_jobs_own(tmp_path: Path, code: str, ends: int) -> None:
    job = Job(tmp_path, code)
    ended, said = job.run()
    assert ended == ends
    assert f"vitline: exit code {ends}\n" in said
    assert job.requeued == []


def test_the_limit_stops_the_run_and_requeues_it(tmp_path: Path) -> None:
    job = Job(tmp_path, "75")
    assert job.stop(signal.SIGUSR1)[0] == -9
    assert (job.launch / "slurm-7.0/stop").read_text() == "USR1\n"
    assert job.requeued == ["requeue 7"]


def test_a_persons_stop_is_not_requeued(tmp_path: Path) -> None:
    job = Job(tmp_path, "75")
    assert job.stop(signal.SIGTERM)[0] == 75
    assert (job.launch / "slurm-7.0/stop").read_text() == "TERM\n"
    assert job.requeued == []

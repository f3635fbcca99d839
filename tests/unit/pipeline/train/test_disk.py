"""Real file systems that fail: a full one and a read-only one, in a mount namespace of the test's own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.weights.files import load_weights
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run

ROOT = Path(__file__).resolve().parents[4]
# Saves step 1, which fits, and step 2, which does not; prints what the run would say.
PROGRAM = """
import sys
from pathlib import Path
import torch
from pipeline.errors import EnvironmentUnfit
from pipeline.train.fragments import Fragment
from pipeline.train.saving import Saver
from pipeline.train.world import World

root, numel = Path(sys.argv[1]), int(sys.argv[2])
saver = Saver(root, World(0, 1, 0, torch.device("cpu")), 2, lambda: None, lambda event: None)
for step, size in ((1, 1000), (2, numel)):
    try:
        saver.start(step, [Fragment(f"p{step}", "master", 0, torch.ones(size))], {"shapes": {}}, {})
        saver.finish()
        print("saved", step)
    except EnvironmentUnfit as error:
        print("refused", step, error.found)
"""
# Stops after step 10, goes on until its disk is full between two saves, and goes on with room on it.
FILLED = """
import shutil, sys
from pathlib import Path
import torch
from pipeline.errors import EnvironmentUnfit, StopRequested
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after

torch.set_num_threads(1)
run_dir, job = Path(sys.argv[1]), Path(sys.argv[1]) / "jobs" / "aaaa"
(job / "job.json").write_bytes((run_dir / "job.json").read_bytes())
filler = job / "filler"

def fill():
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            return False

for stop_asked in (stop_after(10), fill):
    try:
        run(run_dir, "aaaa", device="cpu", stop_asked=stop_asked)
    except (EnvironmentUnfit, StopRequested) as error:
        print(error.found)
filler.unlink()
run(run_dir, "aaaa", device="cpu")
shutil.copytree(job, run_dir / "copy")
"""


def can_mount() -> bool:
    command = ["unshare", "--mount", "true"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def save_on(mount: str, directory: Path, numel: int) -> list[str]:
    """What the program prints with `directory` mounted so; complete checkpoints are listed after it."""
    script = f'{mount} && "$0" -c "$1" "$2" {numel}; ls "$2"/*/COMPLETE 2>/dev/null || true'
    return in_namespace(script, PROGRAM, str(directory)).stdout.splitlines()


def in_namespace(script: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a shell script that may mount; "$0" is Python, "$1" and on are the arguments."""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    lines = save_on(f"mount -t tmpfs -o size=1m none {tmp_path}", tmp_path, 10**6)
    assert lines[0] == "saved 1"
    assert lines[1].startswith("refused 2 rank 0 could not write ")
    assert "No space left on device" in lines[1]
    assert lines[2:] == [str(tmp_path / "step-000000001" / "COMPLETE")]


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_read_only_directory_is_one_clear_message(tmp_path: Path) -> None:
    lines = save_on(f"mount -t tmpfs -o ro none {tmp_path}", tmp_path, 10)
    assert len(lines) == 2
    for step, line in enumerate(lines, start=1):
        assert line.startswith(f"refused {step} a checkpoint could not be written: ")
        assert "Read-only file system" in line


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_worker_says_that_its_disk_is_full_and_goes_on_once_there_is_room(
    run_dir: Path, add_job: Callable[..., JobDir]
) -> None:
    changes: dict[str, Any] = {"duration": "60 steps", "checkpoint": {}}
    whole, job = add_job("whole", **changes), add_job(**changes)
    run(run_dir, "whole", device="cpu")
    shutil.copy(job.job, run_dir / "job.json")
    mount = f"mount -t tmpfs -o size=2m none {job.path}"
    done = in_namespace(f'{mount} && "$0" -c "$1" "$2"', FILLED, str(run_dir))
    assert done.stdout.splitlines() == [
        "a stop was asked for; step 10 of 60 is done and saved",
        f"{job.path} cannot be written to: [Errno 28] No space left on device",
    ]
    assert "Traceback" not in done.stderr
    copy = JobDir(run_dir / "copy")
    events = [event for event in read_events(copy.events)[0] if event["event"] == "start"]
    assert [event["step"] for event in events] == [0, 10, 10]
    assert read_sample_log(copy) == read_sample_log(whole)
    ours, theirs = (load_weights(directory.weights)[0] for directory in (copy, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
def test_a_worker_says_that_its_directory_is_read_only(add_job: Callable[..., JobDir]) -> None:
    job = add_job()
    mount = f"mount --bind {job.path} {job.path} && mount -o remount,bind,ro {job.path}"
    done = in_namespace(f'{mount} && "$0" -m pipeline.train.worker "$1" --device=cpu', str(job.job), code=7)
    assert f"found: {job.path} cannot be written to: [Errno 30] Read-only file system" in done.stderr
    assert "do this: free space or repair the disk" in done.stderr
    assert "Traceback" not in done.stderr

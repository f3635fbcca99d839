"""Real file systems that fail: a full one and a read-only one, in a mount namespace of the test's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def can_mount() -> bool:
    command = ["unshare", "--mount", "true"]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def save_on(mount: str, directory: Path, numel: int) -> list[str]:
    """What the program prints with `directory` mounted so; complete checkpoints are listed after it."""
    script = f'{mount} && "$0" -c "$1" "$2" {numel}; ls "$2"/*/COMPLETE 2>/dev/null || true'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, PROGRAM, str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


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

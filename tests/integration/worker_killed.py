"""Helper of test_worker_killed.py: does jobs in forked children that are killed at chosen moments.

    python worker_killed.py RUN CASES.json      CASES: {digest: moment | [times, seed]}

A job with a moment is killed there, in its second save, and then done to the end; one with times is
killed so often, each time at a random change of its files, before or after it. What a kill leaves behind is
files, so every state that a kill can leave is among these. A fork of a process that has imported PyTorch,
and what it imports late, starts at once. Exit code 0: all children ended as meant.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from pipeline.rundir import RunDir
from pipeline.train import checkpoint, saving, tensorfile
from pipeline.train.worker import run

MOMENTS: dict[str, tuple[Any, str]] = {
    "before anything": (saving.Saver, "_prepare"),
    "in the middle of a file": (saving, "write_tensors"),
    "between tensors and index": (saving, "write_atomic"),
    "before the marker": (saving, "write_json"),
    "after the marker": (saving, "retain"),
    "while removing old ones": (checkpoint.shutil, "rmtree"),
}

WRITES = ("write", "pwrite")
SELDOM = ("fsync", "replace", "rename", "unlink", "mkdir", "rmdir", "chmod")
# Changes that count, and how many at most: either is the start of an attempt and at most 18 of its steps.
CHANGES = ((SELDOM, 40), (WRITES + SELDOM, 500))


def die(*args: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(moment: str) -> None:
    """Replace the function that the moment begins with, so that its call in the second save kills."""
    owner, name = MOMENTS[moment]
    real: Callable[..., Any] = getattr(owner, name)
    deadly = 1 if moment == "while removing old ones" else 2  # nothing is removed before the second save
    calls = 0

    def replaced(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == deadly and moment == "in the middle of a file":
            tensorfile._write_all = write_half_and_die
        elif calls == deadly:
            die()
        return real(*args, **options)

    setattr(owner, name, replaced)


def write_half_and_die(descriptor: int, data: memoryview) -> None:
    os.write(descriptor, data[: len(data) // 2])
    die()


def child(run_dir: Path, digest: str, prepare: Callable[[], None]) -> int:
    """Wait status of a forked child that does the job after `prepare`."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        prepare()
        run(run_dir, digest, device="cpu")
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def kill_once(run_dir: Path, digest: str, moment: str) -> None:
    status = child(run_dir, digest, lambda: kill_at(moment))
    assert os.WIFSIGNALED(status), f"{moment}: the child was not killed"
    job = RunDir(run_dir).job(digest)
    assert not job.result.exists(), f"{moment}: it was done"
    assert list(job.checkpoints.glob("*/COMPLETE")), f"{moment}: no complete checkpoint is left"


def kill_often(run_dir: Path, digest: str, times: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(times):
        counted, most = chance.choice(CHANGES)
        how = counted, chance.randrange(most), chance.random() < 0.5
        status = child(run_dir, digest, lambda how=how: kill_at_change(*how))
        assert os.WIFSIGNALED(status), f"a child was not killed, seed {seed}"


def kill_at_change(counted: tuple[str, ...], call: int, after: bool) -> None:
    """Kill at the call with this number of the functions `counted`, in any thread; `after` or before it."""
    count = itertools.count()

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*args: Any, **options: Any) -> Any:
            now = next(count) == call
            if now and not after:
                die()
            result = real(*args, **options)
            if now:
                die()
            return result

        return replaced

    for name in counted:
        setattr(os, name, deadly(getattr(os, name)))


def main() -> None:
    run_dir = Path(sys.argv[1])
    for digest, how in json.loads(Path(sys.argv[2]).read_text()).items():
        if isinstance(how, str):
            kill_once(run_dir, digest, how)
        elif how is not None:
            kill_often(run_dir, digest, *how)
        assert child(run_dir, digest, lambda: None) == 0, f"{digest} did not end well"


if __name__ == "__main__":
    main()

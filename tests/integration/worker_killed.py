"""Helper of test_worker_killed.py: does a job in forked children that are killed at a chosen moment.

    python worker_killed.py RUN DIGEST MOMENT     one child, killed at the named moment of its second save
    python worker_killed.py RUN DIGEST N SEED     children killed at random times, N times, then one to the end

A fork of a process that has imported PyTorch starts at once. Exit code 0: the children ended as meant.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.train import checkpoint, saving, tensorfile
from pipeline.train.worker import run

MOMENTS: dict[str, tuple[Any, str]] = {
    "before anything": (saving.Saver, "_prepare"),
    "in the middle of a file": (tensorfile, "_write_all"),
    "between tensors and index": (saving, "write_atomic"),
    "before the marker": (saving, "write_json"),
    "after the marker": (saving, "retain"),
    "while removing old ones": (checkpoint.shutil, "rmtree"),
}
SECOND = {"in the middle of a file": 40}  # calls that belong to the first save


def die(*args: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(moment: str) -> None:
    """Replace the function that the moment begins with, so that its call in the second save kills."""
    owner, name = MOMENTS[moment]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def replaced(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if moment == "in the middle of a file":
            # A file has a header and many tensors: half of the second file is down when it ends.
            if args[0] is not None and calls > SECOND[moment]:
                os.write(args[0], args[1][: len(args[1]) // 2])
                die()
            return real(*args, **options)
        if calls == (1 if moment == "while removing old ones" else 2):
            die()
        return real(*args, **options)

    setattr(owner, name, replaced)


def child(run_dir: Path, digest: str, prepare: Callable[[], None]) -> int:
    """Wait status of a forked child that does the job after `prepare`."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        prepare()
        run(run_dir, digest, device="cpu")
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def main() -> int:
    run_dir, digest = Path(sys.argv[1]), sys.argv[2]
    if len(sys.argv) == 4:
        moment = sys.argv[3]
        status = child(run_dir, digest, lambda: kill_at(moment))
        return 0 if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else 1
    chance = random.Random(int(sys.argv[4]))
    for _ in range(int(sys.argv[3])):
        after_s = chance.uniform(0.05, 0.8)
        status = child(run_dir, digest, lambda seconds=after_s: threading.Timer(seconds, die).start())
        if status == 0:
            break
        if not os.WIFSIGNALED(status):
            return 1
    return child(run_dir, digest, lambda: None)


if __name__ == "__main__":
    sys.exit(main())

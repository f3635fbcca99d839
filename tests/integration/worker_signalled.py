"""Helper of test_worker_signalled.py: does jobs in forked children that signal themselves at a given moment.

    python worker_signalled.py RUN CASES.json      CASES: {digest: null | [moment, signal]}

A job with a moment is signalled there and then done once more. Prints {digest: exit codes} as JSON. A fork of
a process that has imported PyTorch, and what it imports late, starts at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from pipeline.rundir import RunDir
from pipeline.train import evaluating, saving, stopping, training, validating
from pipeline.train.worker import main

# What is called then, and which of its calls.
MOMENTS: dict[str, tuple[Any, str, int]] = {
    "start": (training, "build_model", 1),
    "validation": (validating, "score", 1),
    "last validation": (validating, "score", 3),  # of a training that validates twice on the way
    "saving": (saving, "write_tensors", 2),  # in the thread that writes
    "evaluation": (evaluating, "score", 1),
}


def signal_self(number: int) -> None:
    """Send it, and wait until it has been taken: what follows is sure to be after it."""
    taken = threading.Event()
    real = stopping.StopSwitch.turn_on

    def turn_on(switch: stopping.StopSwitch) -> None:
        real(switch)
        taken.set()

    stopping.StopSwitch.turn_on = turn_on  # type: ignore[method-assign]
    os.kill(os.getpid(), number)
    while not taken.is_set():
        time.sleep(0.001)


def signal_at(moment: str, number: int) -> None:
    owner, name, wanted = MOMENTS[moment]
    real: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def replaced(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == wanted and name == "score":  # with one batch scored
            return real(signalling(args[0], number), *args[1:], **options)
        if calls == wanted:
            signal_self(number)
        return real(*args, **options)

    setattr(owner, name, replaced)


def signalling(forward: Callable[..., torch.Tensor], number: int) -> Callable[..., torch.Tensor]:
    def forward_and_signal(images: torch.Tensor) -> torch.Tensor:
        signal_self(number)
        return forward(images)

    return forward_and_signal


def child(job: Path, prepare: Callable[[], None]) -> int:
    """Exit code of a forked worker; negative: it was killed by that signal."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        prepare()
        os._exit(main([str(job), "--device=cpu"]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_all() -> None:
    run_dir = RunDir(Path(sys.argv[1]))
    codes: dict[str, list[int]] = {}
    for digest, how in json.loads(Path(sys.argv[2]).read_text()).items():
        job = run_dir.job(digest).job
        first = [] if how is None else [child(job, lambda how=how: signal_at(*how))]
        codes[digest] = [*first, child(job, lambda: None)]
    sys.stdout.write(json.dumps(codes))


if __name__ == "__main__":
    run_all()

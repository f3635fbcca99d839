"""Helper of test_hanging_ranks.py: the worker, whose rank 1 gets no data for its fifth step until GO exists.

python hanging_ranks.py JOB.json GO      with RANK, WORLD_SIZE, … in the environment
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.data.loader import TrainLoader
from pipeline.train.stragglers import Stragglers
from pipeline.train.worker import main

go = Path(sys.argv[2])
original = TrainLoader.__next__
batches = 0


def wait_for_go() -> None:
    while not go.exists():
        time.sleep(0.05)


def next_batch(loader: TrainLoader) -> Any:
    global batches
    batches += 1
    if batches == 5 and os.environ["RANK"] == "1":
        wait_for_go()
    return original(loader)


def wait_long(stragglers: Stragglers, seconds: float) -> None:
    """As if each batch of rank 1 took so long: a time that no busy machine can hide."""
    real_waited(stragglers, seconds + 1000 * (os.environ["RANK"] == "1"))


real_waited = Stragglers.waited
Stragglers.waited = wait_long  # type: ignore[method-assign]
TrainLoader.__next__ = next_batch  # type: ignore[method-assign]
os._exit(main([sys.argv[1], "--device=cpu"]))

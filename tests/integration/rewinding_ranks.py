"""Helper of test_rewinding_ranks.py: the worker, with batches whose loss is not finite.

    python rewinding_ranks.py JOB.json BAD,… STEPS      with RANK, WORLD_SIZE, … in the environment

The process dies, as by `kill -9`, before its STEPS-th step; 0: never.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from typing import Any

import torch

from pipeline.train import loop
from pipeline.train.worker import main

bad = {int(number) for number in sys.argv[2].split(",")}
deadly = int(sys.argv[3])
original = loop.forward_and_backward
calls = 0


def broken(run: Any, batch: Any) -> torch.Tensor:
    global calls
    calls += 1
    if calls == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    # On the last rank only: the others must hear of it.
    if run.loader._skips.batch(batch.step) in bad and run.world.rank == run.world.size - 1:
        batch.weights.fill_(math.nan)
    return original(run, batch)


loop.forward_and_backward = broken
os._exit(main([sys.argv[1], "--device=cpu"]))

"""Helper of test_reader_ranks.py: reads batches as gangs do, each rank in a process of its own.

    python reader_ranks.py DATASET PLAN.json OUT

PLAN: runs, each a list of attempts [world, threads, first, last] that take over from each other by the state
that a checkpoint holds. OUT/RUN-ATTEMPT-RANK.jsonl gets a line a batch: its ids, and for each sample a hash
of pixels, label and weight. All ranks of an attempt read at once, in forks of this process, which has
imported PyTorch and done nothing with it. Exit code 0: all of them ended well.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from pipeline.config import AugmentSettings, DataView, OrderSettings
from pipeline.data.loader import TrainLoader
from pipeline.data.view import open_view

BATCH = 48  # gives each of 8 ranks whole pairs, as mixing needs


def read(dataset: Path, name: str, out: Path, rank: int, attempt: list[int], state: Any) -> None:
    world, threads, first, last = attempt
    with (
        TrainLoader(
            open_view(DataView(path=dataset.name, split="train"), dataset.parent), batch=BATCH, image_size=16,
            augment=AugmentSettings(mixup=0.4, cutmix=1.0), seed=3, order=OrderSettings(lanes=7, window=9),
            threads=threads, bad_samples=0, rank=rank, world=world, first_step=first, steps=last,
        ) as loader,
        (out / f"{name}-{rank}.jsonl").open("w") as file,
    ):  # fmt: skip
        if state is not None:
            loader.check_state(state)
        for batch in loader:
            rows = zip(batch.images, batch.labels, batch.weights, strict=True)
            hashes = [hashlib.sha256(b"".join(part.numpy().tobytes() for part in row)) for row in rows]
            line = {"ids": batch.ids.tolist(), "hashes": [each.hexdigest() for each in hashes]}
            file.write(json.dumps(line) + "\n")
        (out / f"{name}-{rank}.state").write_text(json.dumps(loader.state(last)))


def fork(*job: Any) -> int:
    """Read in a child; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        read(*job)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(dataset: Path, plan: list[list[list[int]]], out: Path) -> int:
    failed = 0
    for run, attempts in enumerate(plan):
        state = None
        for number, attempt in enumerate(attempts):
            name = f"{run}-{number}"
            ranks = [fork(dataset, name, out, rank, attempt, state) for rank in range(attempt[0])]
            failed += sum(os.waitpid(rank, 0)[1] != 0 for rank in ranks)
            if failed:
                return 1
            state = json.loads((out / f"{name}-0.state").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])))

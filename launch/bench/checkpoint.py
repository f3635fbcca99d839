"""What checkpoints cost: training's speed, its stall, and time against plain files of the same bytes.

    vitline bench checkpoint --models vit_b16 --ranks 2 --work /where/checkpoints/go --csv checkpoint.csv

- `every 50 steps`: a real training under torchrun saves at every 100th step, so that in turn 50 steps hold a
  save with its writing, and 50 hold none. Seconds of the former, over the mean of the 50 before and after.
- `save`, `load`: all ranks save the state of a model and load it, hashes compared, and write and read as many
  bytes plainly, in turn: one file a rank, flushed to the disk; read from outside of the page cache.
- `stall`: how long training would have stood still in these saves, over their time; `first stall` allocates
  the copy in host memory, which later saves use again.

Ratios are taken within a round, and their median is shown. The state is that of Adam (12 bytes a parameter).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from launch.bench.ranks import on_ranks, run_job, write_drawings
from launch.bench.tables import print_rows, scratch, write_rows
from model.flops import count_parameters
from model.zoo import model_config
from pipeline.config import CheckpointSettings, EngineSettings, ModelSettings, TrainSettings
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.rundir import read_json

_PROCESS_BYTES = 700 * 2**20  # of PyTorch and DeepSpeed, each rank


def cost_of_saving(given: argparse.Namespace, work: Path) -> dict[str, str]:
    """Trains, and compares the steps with a save to those without."""
    every, pairs = given.every, given.pairs
    settings = TrainSettings(
        model=ModelSettings(name=given.train_model),
        image_size=given.image_size,
        duration=f"{(2 * pairs + 2) * every} steps",
        batch=given.batch,
        engine=EngineSettings.model_validate({"stage": given.stage, "self_test": False}),
        checkpoint=CheckpointSettings(every=f"{2 * every} steps", keep=1),
        log_every=f"{every} steps",
        log_samples=False,
    )
    data = write_drawings(work, given.image_size)
    events = run_job(work, "cost", data, settings, given.ranks, given.device)
    with_s, without_s = intervals(events, every, given.batch)
    around = [(before + after) / 2 for before, after in itertools.pairwise(without_s)]
    return row(f"every {every} steps", given.train_model, given.ranks, None, with_s, around)


def intervals(events: Sequence[dict[str, Any]], every: int, batch: int) -> tuple[list[float], list[float]]:
    """Seconds of the `every` steps after each save but for the last, and of those before and after them.

    A save happens at each multiple of 2 × `every`, right after what is reported of that step.

    Raises:
        UserError: a save was still being written when its interval ended.
    """
    with_s, without_s = [], []
    saved = 0  # step of the last complete save
    for event in events:
        if event["event"] == "checkpoint":
            saved = int(event["step"])
        if event["event"] != "progress" or event["step"] == every:  # the first interval compiles and warms up
            continue
        step, seconds = int(event["step"]), every * batch / float(event["images_per_s"])
        if step % (2 * every) == 0:
            without_s.append(seconds)
            continue
        with_s.append(seconds)
        if saved != step - every:
            raise UserError(
                f"the save of step {step - every} was not complete at step {step}",
                f"saves that are written within {every} steps",
                "raise --every or --batch, or use a faster disk",
            )
    return with_s, without_s


def against_plain_files(model: str, given: argparse.Namespace, work: Path) -> list[dict[str, str]]:
    """Saves and loads of one model's state on all ranks."""
    check_memory(model, given.ranks, psutil.virtual_memory().available)
    out = work / "measured.json"
    arguments = [f"--model={model}", f"--stage={given.stage}", f"--rounds={given.rounds}"]
    arguments += [f"--device={given.device}", f"--work={work}", f"--out={out}"]
    on_ranks(given.ranks, "launch.bench.checkpoint_rank", arguments, given.device)
    found = read_json(out)
    assert found is not None, f"the ranks ended without {out}"
    size = int(found["bytes"])
    rows = [
        row(what, model, given.ranks, size, found[what], found[f"plain_{what}"]) for what in ("save", "load")
    ]
    rows.append(row("stall", model, given.ranks, size, found["stall"], found["save"]))
    rows.append(row("first stall", model, given.ranks, size, found["first_stall"], []))
    return rows


def check_memory(model: str, ranks: int, available: int) -> None:
    """Refuse a model whose ranks do not fit into this machine's memory together.

    Each rank holds the parameters, and three times its part of the state: masters and moments, the copy
    that is written, the bytes of the plain file.
    """
    parameters = count_parameters(model_config(model, num_classes=1000))
    needed = ranks * (_PROCESS_BYTES + 4 * parameters) + 3 * 12 * parameters
    if needed > available:
        raise EnvironmentUnfit(
            f"{available / 2**30:.1f} GiB of free memory",
            f"{needed / 2**30:.1f} GiB for the state of {model}, its copies, and {ranks} processes",
            "leave this model out, or measure it on a larger machine",
        )


def row(
    what: str, model: str, ranks: int, size: int | None, ours: Sequence[float], beside: Sequence[float]
) -> dict[str, str]:
    """Medians in seconds, and the median of the ratios; `beside` empty: there is nothing to compare with."""
    ratios = [one / other for one, other in zip(ours, beside, strict=True)] if beside else []
    return {
        "what": what,
        "model": model,
        "ranks": str(ranks),
        "MiB": "" if size is None else f"{size / 2**20:.0f}",
        "seconds": f"{statistics.median(ours):.3f}",
        "beside_s": f"{statistics.median(beside):.3f}" if beside else "",
        "ratio": f"{statistics.median(ratios):.3f}" if ratios else "",
        "rounds": str(len(ours)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the command line says and prints a table; writes it as CSV if asked."""
    parser = argparse.ArgumentParser(prog="vitline bench checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--models", nargs="*", default=["vit_b16"], help="whose state is saved and loaded")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--stage", type=int, choices=(1, 2, 3), default=1, help="of ZeRO")
    parser.add_argument("--rounds", type=int, default=5, help="saves and loads that count")
    parser.add_argument("--pairs", type=int, default=3, help="saves of the training; 0: leave it out")
    parser.add_argument("--every", type=int, default=50, help="steps")
    parser.add_argument("--train-model", default="vit_ti16")
    parser.add_argument("--image-size", type=int, default=64, help="of the training")
    parser.add_argument("--batch", type=int, default=32, help="of all ranks, in the training")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, help="on the disk to measure; default: the temporary directory")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with scratch(given.work) as place:
        rows = [cost_of_saving(given, place)] if given.pairs else []
        for model in given.models:
            rows += against_plain_files(model, given, place)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    print_rows(rows)
    if given.csv:
        write_rows(given.csv, rows)


if __name__ == "__main__":
    main(sys.argv[1:])

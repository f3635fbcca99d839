"""Times our reader of training images against those of others, side by side in one process.

    python -m launch.bench.data --photos DIRECTORY --sets large small --csv loaders.csv

Every round lets each contender make twelve batches in rotating order, on one thread, and takes the
processor time of the whole process: other work on the machine changes it little, and what decoding threads do
is in it. Ratios are taken within a round; their median is printed, above 1 where we are faster. `kernel` is
decoding and cropping alone, without reading; `ours-packed` reads the same photos from shards written with a
shorter side of 256 px.
webdataset, timm, mosaicml-streaming and litdata take part where they are installed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from launch.bench.data_peers import SLICE, Batches, contenders, missing, our_loader, ours
from launch.bench.data_sets import SETS, ImageSet, make_set
from launch.bench.data_whole import report_memory, report_writing
from launch.bench.tables import print_rows, write_rows


def measure(found: ImageSet, packed: ImageSet | None, rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each contender's slice, one entry a round."""
    makers = contenders()
    batches = {name: make(found) for name, make in makers.items()}
    if packed is not None:
        batches["ours-packed"] = ours(packed)
    for one in batches.values():
        _slice(one)  # opens files, fills shuffle buffers
    taken: dict[str, list[float]] = {name: [] for name in batches}
    order = list(batches)
    for _ in range(rounds):
        for name in order:
            began = time.process_time()
            _slice(batches[name])
            taken[name].append(time.process_time() - began)
        order = order[1:] + order[:1]
    return taken


def measure_threads(found: ImageSet, rounds: int) -> dict[int, list[float]]:
    """Wall seconds with one decoding thread and with two, round by round, for enough batches to hide that one
    of two threads has nothing to do at the end."""
    view, wall = found.view(), {1: list[float](), 2: list[float]()}
    for number in range(rounds + 1):
        for threads in (1, 2) if number % 2 else (2, 1):
            began = time.perf_counter()
            with our_loader(found, view, 0, 4 * SLICE, threads) as loader:
                for _ in loader:
                    pass
            wall[threads].append(time.perf_counter() - began)
    return {threads: seconds[1:] for threads, seconds in wall.items()}


def measure_resume(found: ImageSet, rounds: int) -> list[float]:
    """Wall seconds from opening the dataset to the first batch, at 90 % of an epoch over at its start."""
    ratios = []
    for _ in range(rounds + 1):
        wall = []
        for share in (0.0, 0.9):
            began = time.perf_counter()
            view = found.view()
            with our_loader(found, view, int(share * view.samples / found.batch), 1) as loader:
                next(loader)
                wall.append(time.perf_counter() - began)
        ratios.append(wall[1] / wall[0])
    return ratios[1:]


def _slice(batches: Batches) -> int:
    """Images made."""
    return sum(next(batches) for _ in range(SLICE))


def table(found: ImageSet, taken: Mapping[str, Sequence[float]]) -> list[dict[str, str]]:
    """One row a contender: images for a second of one core, and how much faster ours is."""
    rows = []
    for contender, seconds in taken.items():
        row = {
            "set": found.name,
            "contender": contender,
            "images/core-s": f"{SLICE * found.batch / statistics.median(seconds):.0f}",
        }
        for mine in ("ours", "ours-packed"):
            pairs = zip(seconds, taken.get(mine, ()), strict=False)
            ratios = [theirs / own for theirs, own in pairs]
            row[f"{mine}/it"] = f"{statistics.median(ratios):.2f}" if ratios else ""
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the command line says and prints a table; writes it as CSV if asked."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench.data", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--photos", type=Path, required=True, help="JPEG photos, in directories named by class"
    )
    sets = [name for name in SETS if name != "packed"]
    parser.add_argument("--sets", nargs="+", choices=sets, default=["large"])
    parser.add_argument("--samples", type=int, default=1024, help="images in a set")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--work", type=Path, help="keeps the sets; default: a temporary directory")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    if not any(given.photos.rglob("*.jpg")):
        parser.error(f"no .jpg below {given.photos}; expected one directory a class with JPEG photos")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        rows = _run(given, given.work or Path(temporary))
    if given.csv:
        write_rows(given.csv, rows)


def _run(given: argparse.Namespace, work: Path) -> list[dict[str, str]]:
    make = partial(make_set, photos=given.photos, root=work, samples=given.samples)
    rows = []
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if missing():
        print(f"not installed, left out: {', '.join(missing())}")
    for name in given.sets:
        found = make(name)
        rows += table(found, measure(found, make("packed") if name == "large" else None, given.rounds))
    print_rows(rows)
    for name in given.sets:
        _print_threads(name, measure_threads(make(name), given.rounds))
        resumed = statistics.median(measure_resume(make(name), given.rounds))
        print(f"{name}: the first batch at 90 % of an epoch takes {resumed:.2f} times that at its start")
        report_memory(make(name))
    report_writing(given.photos, work, given.rounds)
    return rows


def _print_threads(name: str, wall: Mapping[int, Sequence[float]]) -> None:
    """The best round of each is what the machine can do when nothing else runs on it."""
    typical = statistics.median(one / two for one, two in zip(wall[1], wall[2], strict=True))
    best = min(wall[1]) / min(wall[2])
    print(f"{name}: two threads make {typical:.2f} times the images of one (wall time), at best {best:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])

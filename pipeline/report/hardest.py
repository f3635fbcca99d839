"""The test images that models got wrong most: which, what they were taken for, and how they look.

predictions.parquet of all starts and seeds ──► share wrong, then mean loss ──► the hardest ids
the test split's shards ──► their pictures

Chosen over all models together, so what is shown is hard, or labelled wrong, and no cause of one model's
score. Reading a picture is no opening of the split: nothing is scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from pipeline.config import DataView
from pipeline.data.view import View, open_view
from pipeline.errors import DataError, VitlineError
from pipeline.report.parts import Gallery, Tile
from pipeline.report.thumbnails import thumbnails
from pipeline.report.words import clean, count, percent
from pipeline.rundir import RunDir, read_json
from pipeline.transfer.cells import Cell

MOST, LEAST = 12, 4  # of a dataset
_TOGETHER = 96  # over all datasets


@dataclass(frozen=True)
class Hard:
    """One image: `wrong` of `models` predictions miss its label; `taken_for` most often."""

    id: int
    label: str
    taken_for: str
    wrong: int
    models: int
    loss: float  # mean over the models, nat; NaN where a protocol gives none


def hardest(run: RunDir, cells: Sequence[Cell]) -> list[Gallery]:
    """A gallery for each dataset; one without pictures says why."""
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    most = min(MOST, max(LEAST, _TOGETHER // len(datasets)))
    found = []
    for dataset in datasets:
        own = [cell for cell in cells if cell.dataset == dataset]
        # Those of another test split are marked elsewhere; pictures are of the first one's.
        own = [cell for cell in own if cell.test_fingerprint == own[0].test_fingerprint]
        found.append(_gallery(run, dataset, own, most))
    return found


def rank_images(run: RunDir, cells: Sequence[Cell], most: int) -> tuple[list[Hard], int]:
    """The `most` hardest of cells of one test split, and how many images no model got right."""
    wrong = np.sum([~cell.correct for cell in cells], axis=0)
    losses = np.mean([_losses(run, cell) for cell in cells], axis=0)
    by_loss = np.nan_to_num(losses, nan=0.0)
    # The last key counts most; ids make the order of equals their own.
    order = np.lexsort((cells[0].ids, -by_loss, -wrong))[:most]
    return [
        Hard(
            id=int(cells[0].ids[place]),
            label=_name(cells[0], int(cells[0].labels[place])),
            taken_for=_taken_for(cells, int(place)),
            wrong=int(wrong[place]),
            models=len(cells),
            loss=float(losses[place]),
        )
        for place in order
        if wrong[place]
    ], int(np.count_nonzero(wrong == len(cells)))


def _losses(run: RunDir, cell: Cell) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Float (n,) in the order of the cell's ids."""
    path = run.job(cell.digest).predictions
    if "nll" not in pq.read_schema(path).names:
        return np.full(cell.n, np.nan)
    table = pq.read_table(path, columns=["id", "nll"])
    order = np.argsort(table["id"].to_numpy(), kind="stable")
    losses: np.ndarray[tuple[int], np.dtype[np.float64]] = table["nll"].to_numpy()[order].astype(np.float64)
    return losses


def _taken_for(cells: Sequence[Cell], place: int) -> str:
    """The wrong class that most models say; of equals the first by number."""
    said = Counter(int(cell.predictions[place]) for cell in cells if not cell.correct[place])
    best = min(said, key=lambda label: (-said[label], label), default=-1)
    return _name(cells[0], best) if best >= 0 else ""


def _name(cell: Cell, label: int) -> str:
    return clean(cell.classes[label], 24) if label < len(cell.classes) else str(label)


def _gallery(run: RunDir, dataset: str, cells: Sequence[Cell], most: int) -> Gallery:
    found, missed = rank_images(run, cells, most)
    models = "the one model" if len(cells) == 1 else f"all {len(cells)} models"
    share = f"{count(missed)} of {count(cells[0].n)} images ({percent(missed / cells[0].n)})"
    note = f"{share} were wrong in {models}."
    try:
        with closing(_test_split(run, cells[0])) as view:
            pictures = dict(thumbnails(view, [hard.id for hard in found]))
    except VitlineError as error:
        # Results do not need the images any more; the page says that they are gone.
        return Gallery(clean(dataset), (), f"{note} No pictures: {clean(error.found, 200)}.")
    tiles = [_tile(hard, pictures[hard.id]) for hard in found if hard.id in pictures]
    return Gallery(clean(dataset), tiles, note)


def _tile(hard: Hard, source: str) -> Tile:
    lines = [hard.label, f"→ {hard.taken_for}", f"{hard.wrong} of {hard.models} wrong"]
    if np.isfinite(hard.loss):
        lines[2] += f", loss {hard.loss:.2g}"
    return Tile(source, f"{hard.label}, taken for {hard.taken_for}", lines)


def _test_split(run: RunDir, cell: Cell) -> View:
    """Raises DataError where the images are not those that were scored."""
    job = read_json(run.job(cell.digest).job) or {}
    path = f"jobs/{job['inputs']['data']}"
    view = open_view(DataView(path=path, split="test"), run.path)
    if view.fingerprint != cell.test_fingerprint:
        view.close()
        raise DataError(
            f"the test split in {path} is not the one that was scored",
            f"fingerprint {cell.test_fingerprint}",
            "prepare the dataset again",
        )
    return view

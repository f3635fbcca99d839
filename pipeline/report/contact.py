"""Contact sheets: some images of each dataset's train split, and those that were left out of pre-training.

Test splits have none here: the only test images on the page are the hardest, after they were scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataView
from pipeline.data.exclusions import read_exclusions
from pipeline.data.manifest import load_manifest
from pipeline.data.philox import stream_key
from pipeline.data.view import View, open_view
from pipeline.errors import VitlineError
from pipeline.report.parts import Gallery, Tile
from pipeline.report.thumbnails import thumbnails
from pipeline.report.words import clean, count
from pipeline.rundir import RunDir

MOST, LEAST = 24, 8  # of a dataset
_TOGETHER = 144  # over all datasets
_RUN = 4  # neighbours
_LEFT_OUT = 12


@dataclass(frozen=True)
class Prepared:
    """A dataset and the job that made it."""

    name: str
    digest: str


def contact_sheets(run: RunDir, datasets: Sequence[Prepared]) -> list[Gallery]:
    """One for each dataset; one without pictures says why."""
    most = min(MOST, max(LEAST, _TOGETHER // max(1, len(datasets))))
    return [_sheet(run, dataset, most) for dataset in datasets]


def left_out_pictures(run: RunDir, datasets: Sequence[Prepared], pretrain: str) -> list[Gallery]:
    """Images that the lists of the pre-training job `pretrain` name; nothing for a list that is empty."""
    found = []
    for dataset in datasets:
        path = run.job(pretrain).path / f"exclude-{dataset.name}.json"
        if path.is_file():
            found.append(_left_out(run, dataset, path))
    return [gallery for gallery in found if gallery is not None]


def _sheet(run: RunDir, dataset: Prepared, most: int) -> Gallery:
    try:
        with closing(_open(run, dataset)) as view:
            tiles = _tiles(view, _some(view.samples, most))
    except VitlineError as error:
        return Gallery(clean(dataset.name), (), f"No pictures: {clean(error.found, 200)}.")
    return Gallery(clean(dataset.name), tiles, f"{len(tiles)} of {count(view.samples)}, drawn at random.")


def _left_out(run: RunDir, dataset: Prepared, path: Path) -> Gallery | None:
    title = f"{clean(dataset.name)}, left out"
    try:
        split = load_manifest(run.job(dataset.digest).path).splits["train"]
        ids = read_exclusions(path, split)
        if not len(ids):
            return None
        with closing(_open(run, dataset)) as view:
            tiles = _tiles(view, np.unique(ids)[:_LEFT_OUT])
    except VitlineError as error:
        return Gallery(title, (), f"No pictures: {clean(error.found, 200)}.")
    return Gallery(title, tiles, f"{len(tiles)} of {count(len(ids))}, the first by id.")


def _open(run: RunDir, dataset: Prepared) -> View:
    return open_view(DataView(path=f"jobs/{dataset.digest}", split="train"), run.path)


def _some(samples: int, most: int) -> NDArray[np.int64]:
    """Ids of at most `most` of `samples`, rising, the same at every call.

    Runs of neighbours at random places: of remote shards a few chunks are fetched and not one an image.
    """
    run = min(_RUN, samples)
    random = np.random.default_rng(stream_key(0, "contact"))
    places = random.choice(samples // run, size=min(most // run, samples // run), replace=False)
    return np.sort((places[:, None] * run + np.arange(run)).ravel()).astype(np.int64)


def _tiles(view: View, samples: NDArray[np.int64]) -> list[Tile]:
    labels = dict(zip(samples.tolist(), view.labels_of(samples).tolist(), strict=True))
    return [
        Tile(source, name, (name,))
        for sample, source in thumbnails(view, samples.tolist())
        for name in [clean(view.classes[labels[sample]], 24)]
    ]

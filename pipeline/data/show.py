"""A dataset at a glance: numbers, a sheet of its images, and how well its order mixes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.config import OrderSettings
from pipeline.data.decode import decode
from pipeline.data.manifest import load_manifest
from pipeline.data.philox import permutation
from pipeline.data.view import View

_LOOKED_AT = 200  # images whose size is read
_BATCHES = 50  # looked at to judge the mixing


def summary(directory: Path, views: dict[str, View]) -> dict[str, Any]:
    """Classes, and for each split samples, bytes, shards, samples of each class, image sizes.

    Args:
        directory: of the dataset.
        views: split → all of it.
    """
    manifest = load_manifest(directory)
    splits: dict[str, Any] = {}
    for name, view in views.items():
        split = manifest.splits[name]
        splits[name] = {
            "samples": split.samples,
            "shards": len(split.shards),
            "bytes": sum(shard.bytes for shard in split.shards),
            "chunk": split.chunk,
            "left_out": [dataclasses.asdict(bad) for bad in split.bad],
            "multi_label": split.multi_label,
            "per_class": np.bincount(view.labels(), minlength=view.num_classes).tolist(),
            "image_sizes": _sizes(view),
        }
    return {"classes": list(manifest.classes), "fingerprint": manifest.fingerprint, "splits": splits}


def _some(view: View, count: int) -> NDArray[np.int64]:
    """Ids of some samples, the same at every call."""
    return view.sample_id(permutation(0, "show", 0, view.samples)[:count])


def _sizes(view: View) -> dict[str, list[int]]:
    """Smallest, median and largest width and height, px, of some images."""
    found = [decode(view.read(sample)) for sample in _some(view, _LOOKED_AT).tolist()]
    shapes = np.array([pixels.shape[:2] for pixels in found if not isinstance(pixels, str)]).reshape(-1, 2)
    if len(shapes) == 0:
        return {}
    sides = {"height": shapes[:, 0], "width": shapes[:, 1]}
    return {name: [int(value) for value in np.percentile(side, (0, 50, 100))] for name, side in sides.items()}


def contact_sheet(path: Path, view: View, *, columns: int = 12, rows: int = 8, side: int = 96) -> None:
    """A PNG of some images with their class names."""
    sheet = Image.new("RGB", (columns * side, rows * (side + 12)), "white")
    draw = ImageDraw.Draw(sheet)
    samples = _some(view, columns * rows)
    labels = view.labels_of(samples)
    for place, (sample, label) in enumerate(zip(samples.tolist(), labels.tolist(), strict=True)):
        x, y = place % columns * side, place // columns * (side + 12)
        pixels = decode(view.read(sample))
        if isinstance(pixels, str):
            draw.text((x + 2, y + 2), pixels, fill="red")
        else:
            image = Image.fromarray(pixels)
            scale = (side - 2) / max(image.size)
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            sheet.paste(image.resize(size), (x, y))
        draw.text((x + 1, y + side - 1), view.classes[label][: side // 6], fill="black")
    sheet.save(path)


def mixing(view: View, order: OrderSettings, *, seed: int, batch: int) -> dict[str, float]:
    """How well batches are mixed.

    `worst_case`: variance ÷ mean of the class counts in a batch that must be expected if every chunk were
    of one class, 1 + batch ÷ (the chunks that it is drawn from); independent draws give 1. `measured`: the
    same from the labels as they are. `shards`: distinct shards in a batch. `repeats`: how much more often two
    neighbours of the line that an epoch reads have the same class than two samples at random, 0 at best.
    """
    arithmetic = view.order(order, seed)
    labels = view.labels()
    steps = max(1, min(_BATCHES, view.samples // batch))
    indices = np.stack([arithmetic.batch_indices(step, batch) for step in range(steps)])
    counts = np.stack([np.bincount(labels[row], minlength=view.num_classes) for row in indices])
    expected = batch * np.bincount(labels, minlength=view.num_classes) / view.samples
    ratio = ((counts - expected) ** 2).mean(0)[expected > 0] / expected[expected > 0]
    shards = [len(np.unique(view.locate(view.sample_id(row))[0])) for row in indices]
    line = labels[arithmetic.indices(np.arange(min(view.samples, 100_000), dtype=np.int64))]
    by_chance = float(((np.bincount(labels) / view.samples) ** 2).sum())
    return {
        "worst_case": 1 + batch / arithmetic.chunks_at_once(),
        "measured": float(ratio.mean()),
        "shards": float(np.mean(shards)),
        "repeats": float((line[1:] == line[:-1]).mean()) - by_chance,
    }

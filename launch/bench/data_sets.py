"""The image sets of `vitline bench data`, each as our shards and in the peers' own formats.

    large    500 × 400 photos at quality 87, about 50 KB: made by cutting and enlarging real ones
    photos   the photos themselves, bytes unchanged
    packed   `large`, written by our own writer with a shorter side of 256 px and quality 90
    small    32 × 32

Two peers read WebDataset tars, so they read exactly our shards; MosaicML's streaming and litdata get theirs
written by their own writers from the same bytes.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.config import DataView, FolderSource, WriteSettings
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare

SETS = ("large", "photos", "packed", "small")
_LARGE = (500, 400)  # width, height


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One set on disk: our dataset in `root`/ours, MDS shards in /mosaic, litdata's in /litdata."""

    name: str
    root: Path
    image_size: int

    @property
    def batch(self) -> int:
        """Images in a batch."""
        return 256 if self.name == "small" else 64

    def view(self) -> View:
        return open_view(DataView(path="ours", split="train"), self.root)

    @property
    def tars(self) -> list[str]:
        return sorted(str(path) for path in (self.root / "ours" / "train").glob("*.tar"))


def make_set(name: str, photos: Path, root: Path, samples: int) -> ImageSet:
    """Write the set, unless it is there.

    Args:
        photos: directories of JPEG photos, named by class, from which all sets are made.
        samples: images in the set; `photos` repeats what there is.
    """
    found = ImageSet(name, root / name, 32 if name == "small" else 224)
    if (found.root / "complete").exists():
        return found
    shutil.rmtree(found.root, ignore_errors=True)
    for split, count in (("train", samples), ("test", 256)):  # the test split has to have every class
        write_images(name, photos, found.root / "images" / split, count)
    write = WriteSettings(shorter_side=256, quality=90) if name == "packed" else WriteSettings()
    source = FolderSource(source="folder", path=str(found.root / "images"), write=write)
    prepare(source, found.root / "ours")
    _write_peers(found)
    shutil.rmtree(found.root / "images")
    (found.root / "complete").touch()
    return found


def write_images(name: str, photos: Path, directory: Path, count: int) -> None:
    """`count` images of a set as files, in directories named by class."""
    for number, (folder, data) in enumerate(_images(name, photos, count)):
        path = directory / folder / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _images(name: str, photos: Path, count: int) -> Iterator[tuple[str, bytes]]:
    """Class name and JPEG of `count` images."""
    files = sorted(photos.rglob("*.jpg"))
    random = np.random.default_rng(0)
    for number in range(count):
        file = files[number % len(files)]
        if name == "photos":
            yield file.parent.name, file.read_bytes()
            continue
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        share = 0.8 + 0.2 * random.random()  # another cut each time, so that no two files are equal
        width, height = (max(1, round(side * share)) for side in image.size)
        left = int(random.random() * (image.width - width + 1))
        size = (32, 32) if name == "small" else _LARGE
        image = image.crop((left, 0, left + width, height)).resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=87)
        yield file.parent.name, buffer.getvalue()


def _write_peers(found: ImageSet) -> None:
    """The same bytes and labels, by the writers of those peers that are installed."""
    view = found.view()
    ids = np.arange(view.samples)
    labels = view.labels_of(view.sample_id(ids)).tolist()
    samples = [{"image": view.read(int(i)), "label": label} for i, label in zip(ids, labels, strict=True)]
    if find_spec("streaming"):
        columns = {"image": "bytes", "label": "int"}
        with import_module("streaming").MDSWriter(out=str(found.root / "mosaic"), columns=columns) as writer:
            for sample in samples:
                writer.write(sample)
    if find_spec("litdata"):
        (found.root / "litdata").mkdir()
        writer_type = import_module("litdata.streaming.writer").BinaryWriter
        binary = writer_type(str(found.root / "litdata"), chunk_bytes=64 * 2**20)
        for number, sample in enumerate(samples):
            binary.add_item(number, sample)
        binary.done()
        binary.merge()

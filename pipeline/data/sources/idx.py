"""The idx files of MNIST and its relatives: big-endian header, then bytes (Y. LeCun et al.)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.encode import png
from pipeline.data.sources.source import Item, SourceSplit
from pipeline.errors import DataError

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find_idx(root: Path, name: str) -> Path | None:
    """The directory with all four files, packed or not: root/NAME/raw as torchvision has it, or root."""
    for directory in (root / name / "raw", root):
        if all(_existing(directory / file) for files in FILES.values() for file in files):
            return directory
    return None


def _existing(path: Path) -> Path | None:
    packed = path.with_name(path.name + ".gz")
    return path if path.is_file() else packed if packed.is_file() else None


class IdxSplit(SourceSplit):
    """One split of a directory with idx files; pixels are kept unchanged, as PNG."""

    def __init__(self, directory: Path, split: str) -> None:
        images, labels = (_read(directory / name) for name in FILES[split])
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise DataError(
                f"images of shape {images.shape}, labels of shape {labels.shape} in {directory}",
                "n images of one size, and n labels",
                "fetch the files again",
            )
        self._images, self._labels, self._split = images, labels, split

    def __len__(self) -> int:
        return len(self._labels)

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        for number in numbers:
            yield Item(
                png(self._images[number]), "png", int(self._labels[number]), f"{self._split}/{number:06d}"
            )


def _read(path: Path) -> NDArray[np.uint8]:
    file = _existing(path)
    assert file is not None, f"{path} was there a moment ago"
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        axes = data[3]
        shape = [int(n) for n in np.frombuffer(data, ">u4", axes, 4)]
        if data[:3] != b"\0\0\x08" or len(data) != 4 + 4 * axes + int(np.prod(shape)):
            raise ValueError(f"its header says {shape} bytes, {len(data)} are there")
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(
            f"{file} is not an idx file ({error})", "unsigned bytes in idx format", "fetch it again"
        ) from None
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)

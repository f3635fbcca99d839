"""Datasets of torchvision by name, with the splits that transfer papers use.

Image files keep their bytes; datasets that come as arrays are stored as PNG, every pixel unchanged.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision import datasets

from pipeline.config import TorchvisionSource
from pipeline.data.philox import permutation
from pipeline.data.sources.idx import IdxSplit, find_idx
from pipeline.data.sources.source import Item, Source, SourceSplit
from pipeline.errors import UserError

_TEST_SHARE = 0.2  # of a dataset that comes without a test split


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How torchvision's class is called for each split. Several calls are one after the other.

    `test` empty: the dataset has no test split, a fifth drawn from the seed is one. `files`: what
    torchvision wants to find under `root`. `paths`: attribute with the image files, where the class
    takes no loader.
    """

    files: str
    train: tuple[Mapping[str, Any], ...] = ({"split": "train"},)
    test: tuple[Mapping[str, Any], ...] = ({"split": "test"},)
    paths: str = ""


_BOOL: dict[str, Any] = {"train": ({"train": True},), "test": ({"train": False},)}
_WITH_VAL: dict[str, Any] = {"train": ({"split": "train"}, {"split": "val"})}

RECIPES: dict[str, _Recipe] = {
    "CIFAR10": _Recipe("cifar-10-python.tar.gz, or cifar-10-batches-py/", **_BOOL),
    "CIFAR100": _Recipe("cifar-100-python.tar.gz, or cifar-100-python/", **_BOOL),
    "Country211": _Recipe("country211/", **_WITH_VAL | {"train": ({"split": "train"}, {"split": "valid"})}),
    "DTD": _Recipe("dtd/dtd/", **_WITH_VAL),
    "EuroSAT": _Recipe("eurosat/2750/", train=({},), test=()),
    "FGVCAircraft": _Recipe("fgvc-aircraft-2013b/", train=({"split": "trainval"},)),
    "FashionMNIST": _Recipe("FashionMNIST/raw/*-ubyte.gz, or the same four files directly in root", **_BOOL),
    "Flowers102": _Recipe(
        "flowers-102/jpg/, flowers-102/imagelabels.mat, flowers-102/setid.mat", **_WITH_VAL
    ),
    "Food101": _Recipe("food-101/"),
    "GTSRB": _Recipe("gtsrb/"),
    "KMNIST": _Recipe("KMNIST/raw/*-ubyte.gz, or the same four files directly in root", **_BOOL),
    "MNIST": _Recipe("MNIST/raw/*-ubyte.gz, or the same four files directly in root", **_BOOL),
    "OxfordIIITPet": _Recipe(
        "oxford-iiit-pet/images/, oxford-iiit-pet/annotations/", train=({},), paths="_images"
    ),
    "PCAM": _Recipe("pcam/camelyonpatch_level_2_split_*.h5", **_WITH_VAL),
    "STL10": _Recipe("stl10_binary/"),
    "SVHN": _Recipe("train_32x32.mat, test_32x32.mat"),
}
# Pets' own default is its "trainval" split, so an empty call is train; see `train=({},)` above.


def open_torchvision(settings: TorchvisionSource) -> Source:
    """The dataset in `settings.root`, downloaded there if it is missing and `download` is set.

    Raises:
        UserError: the name is unknown, or the files are not there and cannot be fetched.
    """
    name, root = settings.source.partition(":")[2], Path(settings.root)
    if name not in RECIPES:
        raise UserError(
            f"source {settings.source!r}",
            f"torchvision: and one of {', '.join(sorted(RECIPES))}",
            "correct it",
        )
    directory = find_idx(root, name) if name.endswith("MNIST") else None
    recipe = RECIPES[name]
    parts = (
        {}
        if directory
        else {"train": _load(settings, name, recipe.train), "test": _load(settings, name, recipe.test)}
    )
    directory = directory or (find_idx(root, name) if name.endswith("MNIST") else None)
    if directory:
        return Source(_idx_classes(name), {split: IdxSplit(directory, split) for split in ("train", "test")})
    classes = _classes(parts["train"][0])
    if recipe.test:
        return Source(classes, {split: _Parts(loaded, recipe.paths) for split, loaded in parts.items()})
    return Source(classes, _cut(_Parts(parts["train"], recipe.paths), settings.seed))


def _load(settings: TorchvisionSource, name: str, calls: tuple[Mapping[str, Any], ...]) -> list[Any]:
    kind = getattr(datasets, name)
    accepted = inspect.signature(kind.__init__).parameters
    extra = {"loader": _FileBytes} if "loader" in accepted else {}
    try:
        if settings.download:
            Path(settings.root).mkdir(parents=True, exist_ok=True)
        return [kind(settings.root, download=settings.download, **call, **extra) for call in calls]
    except (OSError, RuntimeError, ImportError, EOFError, ValueError) as error:
        problem = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"torchvision:{name} could not be opened in {settings.root} ({problem[0]})",
            f"its files, placed there by hand or downloaded: {RECIPES[name].files}",
            f"place them under {Path(settings.root).absolute()}, or correct `root` of the dataset",
        ) from error


@dataclass(frozen=True, slots=True)
class _FileBytes:
    """Given to torchvision as its loader: an image file is passed on as it is."""

    path: str | Path
    data: bytes = field(default=b"", init=False)


class _Parts(SourceSplit):
    """Datasets of torchvision, one after the other."""

    def __init__(self, parts: list[Any], paths: str) -> None:
        self._parts = parts
        self._paths = paths
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        for number in numbers:
            place = int(np.searchsorted(self._ends, number, side="right"))
            part = self._parts[place]
            row = int(number) - int(self._ends[place] - len(part))
            if self._paths:
                image: Any = _FileBytes(getattr(part, self._paths)[row])
                label = part._labels[row]
            else:
                image, label = part[row]
            yield _item(image, int(label), int(number))


def _item(image: Any, label: int, number: int) -> Item:
    if isinstance(image, _FileBytes):
        path = Path(image.path)
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        return Item(data, path.suffix[1:].lower(), label, f"{number:07d}_{path.stem}")
    buffer = io.BytesIO()
    image.save(buffer, "png", compress_level=3)
    return Item(buffer.getvalue(), "png", label, f"{number:07d}")


def _classes(part: Any) -> tuple[str, ...]:
    names = getattr(part, "classes", None)
    if not names:
        labels = getattr(part, "labels", None)
        count = (
            int(np.max(labels)) + 1 if labels is not None else 1 + max(label for _, label in _labels(part))
        )
        names = [str(number) for number in range(count)]
    return tuple(str(name) for name in names)


def _labels(part: Any) -> Iterator[tuple[int, int]]:
    return ((number, int(part[number][1])) for number in range(len(part)))


def _idx_classes(name: str) -> tuple[str, ...]:
    return tuple(str(label) for label in getattr(datasets, name).classes)


class _Some(SourceSplit):
    """These items of another split."""

    def __init__(self, whole: SourceSplit, chosen: NDArray[np.int64]) -> None:
        self._whole, self._chosen = whole, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        return self._whole.items(self._chosen[numbers])


def _cut(whole: SourceSplit, seed: int) -> dict[str, SourceSplit]:
    order = permutation(seed, "torchvision/split", 0, len(whole))
    test = round(_TEST_SHARE * len(whole))
    return {"train": _Some(whole, np.sort(order[test:])), "test": _Some(whole, np.sort(order[:test]))}

"""Datasets of Hugging Face's `datasets` package with an image column: saved to disk, local, or on the hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import HuggingFaceSource
from pipeline.data.sources.columns import Label, number_labels
from pipeline.data.sources.encode import extension_of
from pipeline.data.sources.source import Item, Source, SourceSplit
from pipeline.errors import EnvironmentUnfit, UserError


def open_huggingface(settings: HuggingFaceSource) -> Source:
    """Class names are those of the label column's feature, else the values that occur.

    Raises:
        EnvironmentUnfit: the package `datasets` is not installed.
        UserError: the dataset, a split or a column is not there.
    """
    try:
        package: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise EnvironmentUnfit(
            "the package `datasets` is not installed", "it, for a huggingface source", "pip install datasets"
        ) from error
    tables = {split: _load(package, settings, split) for split in ("train", "test")}
    feature = tables["train"].features[settings.label]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    values = {split: list(table[settings.label]) for split, table in tables.items()}
    labels = number_labels(f"column {settings.label!r}", values, names)
    raw = package.Image(decode=False)
    splits: dict[str, SourceSplit] = {
        split: _Table(table.cast_column(settings.image, raw), settings.image, labels.splits[split], split)
        for split, table in tables.items()
    }
    return Source(labels.classes, splits)


def _load(package: Any, settings: HuggingFaceSource, split: str) -> Any:
    path, name = Path(settings.path), getattr(settings, split)
    try:
        if (path / "dataset_dict.json").is_file():
            table = package.load_from_disk(str(path))[name]
        else:
            table = package.load_dataset(settings.path, settings.config, split=name)
    # The package raises errors of its own, of its file systems and of its HTTP clients; only it runs here.
    except Exception as error:
        problem = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UserError(
            f"split {name!r} of {settings.path!r} could not be loaded ({problem[0]})",
            "a dataset saved to disk, a local one, or one on the hub that can be reached",
            f"correct `path`, `config` or `{split}` of the dataset",
        ) from error
    for setting in ("image", "label"):
        if getattr(settings, setting) not in table.column_names:
            raise UserError(
                f"no column {getattr(settings, setting)!r} in {settings.path!r}",
                f"one of {', '.join(table.column_names)}",
                f"correct `{setting}` of the dataset",
            )
    return table


class _Table(SourceSplit):
    """The rows of one split; images are passed on as they are stored."""

    def __init__(self, table: Any, image: str, labels: list[Label], split: str) -> None:
        self._table, self._image, self._labels, self._split = table, image, labels, split

    def __len__(self) -> int:
        return len(self._labels)

    def signature(self) -> str:
        return str(getattr(self._table, "_fingerprint", ""))

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        for number in numbers.tolist():
            value = self._table[number][self._image]
            data = (value or {}).get("bytes") or _read((value or {}).get("path"))
            yield Item(data, extension_of(data), self._labels[number], f"{self._split}/{number:08d}")


def _read(path: str | None) -> bytes:
    try:
        return Path(path).read_bytes() if path else b""
    except OSError:
        return b""

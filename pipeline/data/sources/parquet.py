"""Parquet files with a column of encoded images: bytes, or {bytes, path} as Hugging Face writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import ParquetSource
from pipeline.data.braces import expand_braces
from pipeline.data.sources.columns import Label, number_labels
from pipeline.data.sources.encode import extension_of
from pipeline.data.sources.source import Item, Source, SourceSplit
from pipeline.errors import DataError, UserError


def open_parquet(settings: ParquetSource) -> Source:
    """Class names: `classes`, else those in the files' own metadata, else the values that occur.

    Raises:
        UserError: a file or a column is missing.
        DataError: a file or a label cannot be used.
    """
    files = {split: _files(getattr(settings, split), split) for split in ("train", "test")}
    for paths in files.values():
        for path in paths:
            _check_columns(path, settings)
    values = {split: _labels(paths, settings.label) for split, paths in files.items()}
    names = settings.classes or _names(files["train"][0], settings.label)
    labels = number_labels(f"column {settings.label!r}", values, names)
    splits: dict[str, SourceSplit] = {
        split: _Rows(files[split], settings.image, labels.splits[split], split) for split in files
    }
    return Source(labels.classes, splits)


def _files(pattern: str, split: str) -> list[Path]:
    paths = [Path(path) for text in expand_braces(pattern) for path in sorted(glob(text)) or [text]]
    for path in paths:
        if not path.is_file():
            raise UserError(f"no file {path}", f"what {pattern!r} names", f"correct `{split}` of the dataset")
    return paths


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not Parquet ({error})", "a whole Parquet file", "copy it again"
        ) from error


def _check_columns(path: Path, settings: ParquetSource) -> None:
    names = _open(path).schema_arrow.names
    for setting in ("image", "label"):
        column = getattr(settings, setting)
        if column not in names:
            raise UserError(
                f"no column {column!r} in {path}",
                f"one of {', '.join(names)}",
                f"correct `{setting}` of the dataset",
            )


def _labels(paths: list[Path], column: str) -> list[Any]:
    return [value for path in paths for value in _open(path).read([column])[column].to_pylist()]


def _names(path: Path, column: str) -> list[str] | None:
    """Class names that Hugging Face's `datasets` left in the file."""
    text = (_open(path).schema_arrow.metadata or {}).get(b"huggingface")
    feature: Any = json.loads(text)["info"]["features"].get(column, {}) if text else {}
    feature = feature.get("feature", feature)
    return feature.get("names") if isinstance(feature, dict) else None


class _Rows(SourceSplit):
    """Rows of several files. Images are read by row groups, which are the blocks of this split."""

    def __init__(self, paths: list[Path], image: str, labels: list[Label], split: str) -> None:
        self._image, self._labels, self._split = image, labels, split
        self._groups = [
            (path, group, _open(path).metadata.row_group(group).num_rows)
            for path in paths
            for group in range(_open(path).num_row_groups)
        ]
        self._start = np.cumsum([0, *(rows for _, _, rows in self._groups)])

    def __len__(self) -> int:
        return len(self._labels)

    def blocks(self) -> NDArray[np.int64]:
        return np.diff(self._start)

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        found: dict[int, bytes] = {}
        group = np.searchsorted(self._start, numbers, side="right") - 1
        for place in np.unique(group).tolist():
            path, inside, _ = self._groups[place]
            column = _open(path).read_row_group(inside, [self._image])[self._image]
            for number in numbers[group == place].tolist():
                found[number] = _bytes(column[number - int(self._start[place])].as_py())
        for number in numbers.tolist():
            data = found[number]
            yield Item(data, extension_of(data), self._labels[number], f"{self._split}/{number:08d}")


def _bytes(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    return data if isinstance(data, bytes) else b""

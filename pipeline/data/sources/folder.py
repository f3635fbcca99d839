"""One directory a split, in it one directory a class, in it the images, at any depth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FolderSource
from pipeline.data.manifest import digest
from pipeline.data.scan import KINDS
from pipeline.data.sources.source import Item, Source, SourceSplit
from pipeline.errors import UserError


def open_folder(settings: FolderSource) -> Source:
    """Classes are the names of the directories in both splits, sorted.

    Raises:
        UserError: a directory is missing or empty, or the splits have different classes.
    """
    root = Path(settings.path)
    found = {name: _classes(root / getattr(settings, name)) for name in ("train", "test")}
    if found["train"] != found["test"]:
        only = {
            name: sorted(set(found[name]) - set(found[other]))[:5]
            for name, other in (("train", "test"), ("test", "train"))
        }
        raise UserError(
            f"{root}: only in {settings.train}: {only['train']}, only in {settings.test}: {only['test']}",
            "the same class directories in both splits",
            "add or remove class directories",
        )
    splits: dict[str, SourceSplit] = {
        name: _Folder(root / getattr(settings, name), found[name]) for name in ("train", "test")
    }
    return Source(tuple(found["train"]), splits)


def _classes(directory: Path) -> list[str]:
    if not directory.is_dir():
        raise UserError(
            f"no directory {directory}",
            "one directory a split, in it one directory a class",
            "correct `path`, `train` or `test` of the dataset",
        )
    names = sorted(entry.name for entry in os.scandir(directory) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise UserError(
            f"no class directories in {directory}", "one directory a class", "sort the images into classes"
        )
    return names


class _Folder(SourceSplit):
    """All files of the class directories with an image's extension, sorted by path."""

    def __init__(self, directory: Path, classes: list[str]) -> None:
        self._directory = directory
        self._files = [
            (path, label) for label, name in enumerate(classes) for path in _files(directory / name)
        ]

    def __len__(self) -> int:
        return len(self._files)

    def signature(self) -> str:
        names = (
            (path.relative_to(self._directory).as_posix(), path.stat().st_size) for path, _ in self._files
        )
        return digest(f"{name} {size}" for name, size in names)

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        for number in numbers:
            path, label = self._files[number]
            try:
                data = path.read_bytes()
            except OSError:
                data = b""
            key = path.relative_to(self._directory).as_posix()
            yield Item(data, path.suffix[1:].lower(), label, key)


def _files(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix[1:].lower() in KINDS and path.name[0] != "." and path.is_file()
    )

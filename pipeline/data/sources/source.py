"""What every source gives: classes, and for each split numbered items of bytes, label and key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.data.sources.columns import Label


@dataclass(frozen=True, slots=True)
class Item:
    """One image as it will lie in a shard.

    `data` is an encoded image, `extension` of which kind; `label` a class number, or several; `key` says
    where it comes from.
    """

    data: bytes
    extension: str
    label: Label
    key: str


class SourceSplit(ABC):
    """The items 0 … len-1 of one split, in any order asked for: so writing can shuffle, spread and resume."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        """The items of these numbers, in this order. An image that cannot be read has empty `data`."""

    def blocks(self) -> NDArray[np.int64]:
        """Sizes of runs of items that are read together: it pays to stay in few of them at a time."""
        return np.ones(len(self), dtype=np.int64)

    def signature(self) -> str:
        """Changes when the items may have changed although the settings have not: files, for instance."""
        return ""


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset before it is written."""

    classes: tuple[str, ...]
    splits: dict[str, SourceSplit]

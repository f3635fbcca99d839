"""The command `vitline data duplicates`: images of one dataset's train that stand in others' test splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import DataView
from pipeline.data.duplicates import Pair, find_duplicates, hash_view, pair_sheet
from pipeline.data.exclusions import write_exclusions
from pipeline.data.view import View, open_view


@dataclass(frozen=True, slots=True)
class Found:
    """What one test split shares with the train split."""

    other: View
    place: str
    pairs: list[Pair]

    def summary(self) -> dict[str, Any]:
        """As a list of exclusions keeps it for the report."""
        return {
            "with": self.place,
            "fingerprint": self.other.fingerprint,
            "samples": self.other.samples,
            "pairs": len(self.pairs),
            "exact": sum(pair.exact for pair in self.pairs),
        }


@dataclass(frozen=True, slots=True)
class Search:
    """The train split, and what each of the test splits shares with it."""

    train: View
    found: list[Found]

    @property
    def ids(self) -> list[int]:
        """Samples of train that stand in any of the test splits."""
        return sorted({pair.first for other in self.found for pair in other.pairs})

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                **asdict(pair),
                "with": other.place,
                "first_key": self.train.key(pair.first),
                "second_key": other.other.key(pair.second),
            }
            for other in self.found
            for pair in other.pairs
        ]

    def lines(self, shown: int = 20) -> list[str]:
        """For a terminal."""
        lines = []
        for other in self.found:
            exact = sum(pair.exact for pair in other.pairs)
            lines.append(f"{len(other.pairs)} pairs with test of {other.place}, {exact} the same bytes")
            lines += [
                f"  train {self.train.key(pair.first)} ~ test {other.other.key(pair.second)}: "
                + ("the same bytes" if pair.exact else f"{pair.bits} bits differ")
                for pair in other.pairs[:shown]
            ]
            if len(other.pairs) > shown:
                lines.append(f"  and {len(other.pairs) - shown} more; --json has them all")
        return lines

    def write_sheets(self, path: Path) -> list[tuple[Path, int, int]]:
        """A picture of the pairs for each test split that has any: PATH, PATH with -2, -3, …; each with the
        pairs drawn and found."""
        written = []
        for number, other in enumerate(self.found, start=1):
            if other.pairs:
                own = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
                drawn = pair_sheet(own, other.pairs, self.train, other.other)
                written.append((own, drawn, len(other.pairs)))
        return written

    def write_exclusions(self, path: Path) -> None:
        """The list that `pretrain.exclude` takes; it is written also when nothing was found."""
        why = "same or nearly the same as test images of " + ", ".join(other.place for other in self.found)
        ids = np.array(self.ids, dtype=np.int64)
        write_exclusions(path, self.train.fingerprint, ids, why, [other.summary() for other in self.found])


def search(first: Path, others: Sequence[Path], *, bits: int, threads: int) -> Search:
    """Compare train of the dataset in `first` with test of each of `others`."""
    train = _open(first, "train")
    hashes = hash_view(train, threads)
    found = []
    for other in others:
        test = _open(other, "test")
        pairs = find_duplicates(train, test, bits=bits, threads=threads, hashes=hashes)
        found.append(Found(test, str(other), pairs))
    return Search(train, found)


def _open(directory: Path, split: str) -> View:
    root = directory.resolve()
    return open_view(DataView.model_validate({"path": root.name, "split": split}), root.parent)

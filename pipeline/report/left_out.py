"""Images that pre-training left out because a test split shows them too, and which splits were searched.

The lists are those that the pre-training's job keeps; pipeline/data/exclusions.py describes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.sheet import Sheet, grouped
from pipeline.report.words import clean, count
from pipeline.rundir import RunDir, read_json


@dataclass(frozen=True)
class Searched:
    """One test split that was compared; `pairs` of images are near each other, `exact` are the same bytes."""

    fingerprint: str
    pairs: int
    exact: int


@dataclass(frozen=True)
class LeftOut:
    """`samples` of the train split of `dataset` were left out."""

    dataset: str
    samples: int
    searched: tuple[Searched, ...]


def read_left_out(run: RunDir, digest: str | None) -> list[LeftOut]:
    """What the pre-training `digest` left out; nothing if there is none."""
    if digest is None:
        return []
    found = []
    for path in sorted(run.job(digest).path.glob("exclude-*.json")):
        value = read_json(path) or {}
        searched = tuple(_searched(other) for other in value.get("compared", ()))
        name = path.stem.removeprefix("exclude-")
        found.append(LeftOut(name, len(value.get("ids", ())), searched))
    return found


def _searched(value: Mapping[str, Any]) -> Searched:
    return Searched(str(value["fingerprint"]), int(value["pairs"]), int(value["exact"]))


def left_out_lines(left_out: Sequence[LeftOut], tests: Mapping[str, str]) -> Iterator[str]:
    """Sentences; `tests` are the test splits that were opened, dataset → fingerprint."""
    known = {searched.fingerprint for part in left_out for searched in part.searched}
    for part in left_out:
        pairs = [
            f"{clean(name)} {_pairs(searched)}"
            for name, fingerprint in tests.items()
            for searched in part.searched
            if searched.fingerprint == fingerprint
        ]
        shared = f" Near-duplicates of test images: {', '.join(pairs)}." if pairs else ""
        plural = "" if part.samples == 1 else "s"
        yield f"Left out of pre-training: {part.samples} image{plural} of {clean(part.dataset)}.{shared}"
    missing = [clean(name) for name, fingerprint in tests.items() if fingerprint not in known]
    if missing:
        whose = f"of {', '.join(missing)} " if len(missing) < len(tests) else ""
        yield (
            f"Near-duplicates between the pre-training images and the test splits {whose}"
            "were not searched for."
        )


def left_out_sheet(left_out: Sequence[LeftOut], tests: Mapping[str, str]) -> Sheet:
    """A line for each dataset of the pre-training and each test split, searched or not."""
    rows = []
    for part in left_out:
        by_print = {searched.fingerprint: searched for searched in part.searched}
        for name, fingerprint in tests.items():
            found = by_print.get(fingerprint)
            numbers = ("not searched", "") if found is None else (count(found.pairs), count(found.exact))
            rows.append((clean(part.dataset), count(part.samples), clean(name), *numbers))
    heads = ("pre-training data", "images left out", "test split", "near pairs", "of the same bytes")
    return grouped(heads, rows, (0, 2))


def _pairs(searched: Searched) -> str:
    if not searched.pairs:
        return "none"
    return f"{searched.pairs} pair{'' if searched.pairs == 1 else 's'} ({searched.exact} of the same bytes)"

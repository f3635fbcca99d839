"""Is a dataset still what its manifest says? Every byte is read, every image decoded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.data.decode import decode
from pipeline.data.files import file_reader
from pipeline.data.index import ShardIndex, finish, load_index, read_blocks
from pipeline.data.manifest import Shard, load_manifest
from pipeline.data.progress import Progress, Report, Run
from pipeline.data.remote import is_remote, local_copy
from pipeline.data.scan import scan
from pipeline.errors import VitlineError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong; `key` is empty when it concerns a whole shard."""

    split: str
    shard: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. `samples` were looked at; `known` things were left out when the dataset was made."""

    samples: int
    known: int
    problems: tuple[Problem, ...]


def verify(
    directory: Path, *, images: bool = True, report: Report = lambda event: None, run: Run = map
) -> Verification:
    """Check all shards of a dataset: there, whole, the same bytes, the index right, each image readable.

    Args:
        images: decode each one; without, only bytes and indexes are compared.
        report, run: see progress.py.

    Raises:
        DataError: there is no dataset, or its manifest is damaged.
    """
    manifest = load_manifest(directory)
    names = {name: number for number, name in enumerate(manifest.classes)}
    problems: list[Problem] = []
    samples = 0
    for name, split in manifest.splits.items():
        progress = Progress(name, split.samples, report)
        check = partial(_check_shard, directory, name, split.chunk, images, names)
        for shard, found in zip(split.shards, run(check, split.shards), strict=True):
            problems += found
            samples += shard.samples
            progress.add(shard.samples)
        progress.end()
    return Verification(samples, sum(len(split.bad) for split in manifest.splits.values()), tuple(problems))


def _check_shard(
    directory: Path, split: str, chunk: int, images: bool, names: dict[str, int], shard: Shard
) -> list[Problem]:
    name = shard.name if is_remote(shard.name) else str(directory / shard.name)
    problem = partial(Problem, split, name)
    try:
        index = load_index(directory / shard.index, shard.samples)
        with local_copy(name, directory) as path:
            size = path.stat().st_size
            if size != shard.bytes:
                return [problem("", f"{size} bytes, {shard.bytes} in the manifest")]
            again, sha256 = _index_again(path, name, chunk, index, names)
            if sha256 != shard.sha256:
                return [problem("", f"SHA-256 {sha256}, {shard.sha256} in the manifest")]
            wrong = [field for field in ShardIndex.__slots__ if not _equal(index, again, field)]
            if wrong:
                return [problem("", f"the index differs in {', '.join(wrong)}")]
            return [problem(key, reason) for key, reason in _bad_images(path, index)] if images else []
    except VitlineError as error:
        return [problem("", error.found)]
    except OSError as error:
        return [problem("", str(error))]


def _index_again(
    path: Path, name: str, chunk: int, index: ShardIndex, names: dict[str, int]
) -> tuple[ShardIndex, str]:
    """A fresh index, and the SHA-256. Labels are numbers in most shards, and class names in some that were
    adopted; whichever agrees with the index is right."""

    def once(names: dict[str, int]) -> tuple[ShardIndex, str]:
        # What was left out of a damaged shard, if that was allowed, is left out here too.
        with file_reader(path) as read_at:
            found = scan(name, path.stat().st_size, read_at, names, lambda fault: None)
        return finish(found, chunk, read_blocks(path))

    again = once({})
    return again if _equal(index, again[0], "label") else once(names)


def _equal(first: ShardIndex, second: ShardIndex, field: str) -> bool:
    return np.array_equal(getattr(first, field), getattr(second, field))


def _bad_images(path: Path, index: ShardIndex) -> list[tuple[str, str]]:
    bad = []
    with file_reader(path) as read_at:
        for row in range(len(index)):
            pixels = decode(read_at(int(index.offset[row]), int(index.size[row])))
            if isinstance(pixels, str):
                bad.append((index.key(row), pixels))
    return bad

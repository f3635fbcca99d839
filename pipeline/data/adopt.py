"""Shards that others wrote → indexes and a manifest; the shards stay where and as they are.

One pass hops over a shard's headers and finds its samples, a second reads it once for the hashes. A
remote shard is fetched once for that, one at a time for each process, into a copy that is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from pipeline.config import WebdatasetSource
from pipeline.data.beside import find_beside
from pipeline.data.braces import expand_braces
from pipeline.data.files import file_reader
from pipeline.data.index import Scan, finish, read_blocks, save_index, scan
from pipeline.data.manifest import Manifest, Shard, Split
from pipeline.data.progress import Progress, Report, Run
from pipeline.data.remote import is_remote, local_copy
from pipeline.errors import DataError, UserError


def adopt(settings: WebdatasetSource, directory: Path, *, report: Report, run: Run) -> Manifest:
    """Index the shards of both splits; the indexes go to `directory`.

    Raises:
        UserError: a shard is missing or compressed, or the settings contradict the shards.
        DataError: a shard is damaged, or a sample in it incomplete; shard and key are named.
    """
    splits, largest, names = {}, {}, settings.classes
    for split in ("train", "test"):
        job = _Job(settings, split, directory)
        splits[split], largest[split], beside = _adopt_split(job, report, run)
        names = names or (beside if split == "train" else None)
    classes = names or tuple(str(number) for number in range(largest["train"] + 1))
    if largest["test"] >= len(classes):
        raise DataError(
            f"label {largest['test']} in test, but no label above {largest['train']} in train",
            "the same classes in both splits",
            "check the shards, or list the names under `classes` of the dataset",
        )
    return Manifest(classes, splits, settings.cache)


@dataclass(frozen=True, slots=True)
class _Job:
    """One split that is adopted."""

    settings: WebdatasetSource
    split: str
    directory: Path

    @property
    def pattern(self) -> str:
        return str(getattr(self.settings, self.split))

    @property
    def names(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.settings.classes or ())}


def _adopt_split(job: _Job, report: Report, run: Run) -> tuple[Split, int, tuple[str, ...] | None]:
    """The split, its largest label, and its classes if a manifest beside the shards names them."""
    names = [name if is_remote(name) else str(Path(name).absolute()) for name in expand_braces(job.pattern)]
    for name in names:
        if not is_remote(name) and not Path(name).is_file():
            raise UserError(
                f"no shard {name}",
                f"the shards that {job.pattern!r} names",
                f"correct `{job.split}` of the dataset",
            )
    progress = Progress(job.split, None, report)
    known = find_beside(names, job.directory, job.split, progress, run)
    if known is not None and job.settings.classes in (None, known[1]):
        progress.end()
        return known[0], len(known[1]) - 1, known[1]
    numbered = list(enumerate(names))
    # The size of a chunk is judged by the first shard that holds samples, which is indexed on the way.
    first = chunk = None
    while numbered and chunk is None:
        first, chunk = _adopt_first(job, numbered.pop(0))
    if first is None or chunk is None:
        raise DataError(
            f"no samples in {job.pattern!r}", "at least one", f"correct `{job.split}` of the dataset"
        )
    shards, largest = [], -1
    for shard, label in chain([first], run(partial(_adopt_shard, job, chunk), numbered)):
        progress.add(shard.samples)
        largest = max(largest, label)
        if shard.samples:
            shards.append(shard)
    progress.end()
    return Split(chunk, tuple(shards)), largest, None


def _adopt_first(job: _Job, numbered: tuple[int, str]) -> tuple[tuple[Shard, int] | None, int | None]:
    """Index one shard, and say how many samples make a chunk by it; None for both if it is empty."""
    with local_copy(numbered[1], job.directory) as path:
        found = _scan(path, numbered[1], job.names)
        if not found.offset:
            return None, None
        chunk = max(1, round(job.settings.write.chunk_bytes * len(found.offset) / found.end[-1]))
        return _index(job, chunk, numbered, path, found), chunk


def _adopt_shard(job: _Job, chunk: int, numbered: tuple[int, str]) -> tuple[Shard, int]:
    """Index one shard; returns it and its largest label, -1 if it is empty."""
    with local_copy(numbered[1], job.directory) as path:
        return _index(job, chunk, numbered, path, _scan(path, numbered[1], job.names))


def _index(job: _Job, chunk: int, numbered: tuple[int, str], path: Path, found: Scan) -> tuple[Shard, int]:
    number, name = numbered
    index, sha256 = finish(found, chunk, read_blocks(path))
    size = path.stat().st_size
    index_name = f"{job.split}/{number:06d}.npz"
    if found.offset:
        save_index(job.directory / index_name, index)
    shard = Shard(name, index_name, size, len(index), index.labels, sha256)
    return shard, max((max(labels) for labels in found.label), default=-1)


def _scan(path: Path, name: str, names: dict[str, int]) -> Scan:
    with file_reader(path) as read_at:
        return scan(name, path.stat().st_size, read_at, names)

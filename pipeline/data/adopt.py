"""Shards that others wrote → indexes and a manifest; the shards stay where and as they are.

One pass hops over a shard's headers and finds its samples, a second reads it once for the hashes. A
remote shard is copied for that, one at a time for each process, and the copy is deleted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.config import WebdatasetSource
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
    splits, largest = {}, {}
    for split in ("train", "test"):
        job = _Job(settings, split, directory)
        splits[split], largest[split] = _adopt_split(job, report, run)
    classes = settings.classes or tuple(str(number) for number in range(largest["train"] + 1))
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


def _adopt_split(job: _Job, report: Report, run: Run) -> tuple[Split, int]:
    """The split, and its largest label."""
    names = [name if is_remote(name) else str(Path(name).absolute()) for name in expand_braces(job.pattern)]
    for name in names:
        if not is_remote(name) and not Path(name).is_file():
            raise UserError(
                f"no shard {name}",
                f"the shards that {job.pattern!r} names",
                f"correct `{job.split}` of the dataset",
            )
    chunk = next((size for name in names if (size := _chunk(job, name))), None)
    if chunk is None:
        raise DataError(
            f"no samples in {job.pattern!r}", "at least one", f"correct `{job.split}` of the dataset"
        )
    progress = Progress(job.split, None, report)
    shards, largest = [], -1
    for shard, label in run(partial(_adopt_shard, job, chunk), list(enumerate(names))):
        progress.add(shard.samples)
        largest = max(largest, label)
        if shard.samples:
            shards.append(shard)
    progress.end()
    return Split(chunk, tuple(shards)), largest


def _chunk(job: _Job, name: str) -> int | None:
    """Samples in a chunk, judged by one shard; None if it is empty."""
    with local_copy(name, job.directory) as path:
        found = _scan(path, name, job.names)
    if not found.offset:
        return None
    return max(1, round(job.settings.write.chunk_bytes * len(found.offset) / found.end[-1]))


def _adopt_shard(job: _Job, chunk: int, numbered: tuple[int, str]) -> tuple[Shard, int]:
    """Index one shard; returns it and its largest label, -1 if it is empty."""
    number, name = numbered
    with local_copy(name, job.directory) as path:
        found = _scan(path, name, job.names)
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

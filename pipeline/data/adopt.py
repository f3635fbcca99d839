"""Shards that others wrote → indexes and a manifest; the shards stay where and as they are.

One pass hops over a shard's headers and finds its samples, a second reads it once for the hashes. A
remote shard is fetched once for that, one at a time for each process, into a copy that is deleted.
What cannot be used of a shard ends the adoption, after all were looked through, or is left out and listed
in the manifest: the settings say which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.config import WebdatasetSource
from pipeline.data.beside import find_beside
from pipeline.data.braces import expand_braces
from pipeline.data.files import file_reader
from pipeline.data.index import finish, read_blocks, save_index
from pipeline.data.manifest import BadImage, Manifest, Shard, Split
from pipeline.data.progress import Progress, Report, Run
from pipeline.data.remote import is_remote, local_copy
from pipeline.data.scan import Scan, scan
from pipeline.errors import DataError, UserError

_SHOWN = 20  # faults that a message lists
_ENOUGH = 1000  # faults after which no more are looked for: then it is the settings, or all shards


def adopt(settings: WebdatasetSource, directory: Path, *, report: Report, run: Run) -> Manifest:
    """Index the shards of both splits; the indexes go to `directory`.

    Raises:
        UserError: a shard is missing or compressed, or the settings contradict the shards.
        DataError: shards are damaged, or samples in them incomplete, and `allow_damaged` is not set; all
            are looked through first, and shard and key of each fault are named.
    """
    splits, largest, names = {}, {}, settings.classes
    faults: list[DataError] = []
    for split in ("train", "test"):
        job = _Job(settings, split, directory)
        splits[split], largest[split], beside = _adopt_split(job, faults, report, run)
        names = names or (beside if split == "train" else None)
    if faults:
        raise _refusal(faults)
    for name, found in splits.items():
        if not found.samples:
            pattern = getattr(settings, name)
            raise DataError(f"no samples in {pattern!r}", "at least one", f"correct `{name}` of the dataset")
    classes = names or tuple(str(number) for number in range(largest["train"] + 1))
    if largest["test"] >= len(classes):
        raise DataError(
            f"label {largest['test']} in test, but no label above {largest['train']} in train",
            "the same classes in both splits",
            "check the shards, or list the names under `classes` of the dataset",
        )
    return Manifest(classes, splits, settings.cache)


def _refusal(faults: list[DataError]) -> DataError:
    """One message for all of them."""
    shown = faults[:_SHOWN]
    lines = [f"\n  {fault.found}" for fault in shown]
    more = f"\n  and {len(faults) - _SHOWN} more" * (len(faults) > _SHOWN)
    return DataError(
        shown[0].found if len(faults) == 1 else f"{len(faults)} faults in the shards:{''.join(lines)}{more}",
        "; ".join(dict.fromkeys(fault.expected for fault in shown)),
        "; ".join(dict.fromkeys(fault.do for fault in shown))
        + "; or adopt what is whole, with the rest listed in the manifest: `vitline data index "
        "--allow-damaged`, or `allow_damaged: true` of the dataset",
    )


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


def _adopt_split(
    job: _Job, faults: list[DataError], report: Report, run: Run
) -> tuple[Split, int, tuple[str, ...] | None]:
    """The split, its largest label, and its classes if a manifest beside the shards names them. Faults that
    are not allowed are added to `faults`."""
    names = _names(job)
    progress = Progress(job.split, None, report)
    known = find_beside(names, job.directory, job.split, progress, run)
    if known is not None and job.settings.classes in (None, known[1]):
        progress.end()
        return known[0], len(known[1]) - 1, known[1]
    adopted: list[_Adopted] = []
    for one in _adopt_all(job, list(enumerate(names)), run):
        progress.add(one.shard.samples)
        adopted.append(one)
        if not job.settings.allow_damaged:
            faults += one.faults
            if len(faults) > _ENOUGH:
                raise _refusal(faults)
    progress.end()
    shards = tuple(one.shard for one in adopted if one.shard.samples)
    bad = tuple(_left_out(one.shard.name, fault) for one in adopted for fault in one.faults)
    return Split(adopted[-1].chunk, shards, bad), max(one.largest for one in adopted), None


def _names(job: _Job) -> list[str]:
    """Paths and URLs of the shards."""
    names = [name if is_remote(name) else str(Path(name).absolute()) for name in expand_braces(job.pattern)]
    for name in names:
        if not is_remote(name) and not Path(name).is_file():
            raise UserError(
                f"no shard {name}",
                f"the shards that {job.pattern!r} names",
                f"correct `{job.split}` of the dataset",
            )
    return names


@dataclass(frozen=True, slots=True)
class _Adopted:
    """One shard, the samples in a chunk, its largest label, -1 if it is empty, and what is wrong with what
    was left out of it."""

    shard: Shard
    chunk: int
    largest: int
    faults: tuple[DataError, ...]


def _adopt_all(job: _Job, numbered: list[tuple[int, str]], run: Run) -> Iterator[_Adopted]:
    """All shards in order. The size of a chunk is judged by the first that holds samples."""
    chunk = None
    while numbered and chunk is None:
        first = _adopt_shard(job, None, numbered.pop(0))
        chunk = first.chunk if first.shard.samples else None
        yield first
    yield from run(partial(_adopt_shard, job, chunk), numbered)


def _adopt_shard(job: _Job, chunk: int | None, numbered: tuple[int, str]) -> _Adopted:
    """Index one shard; `chunk`: None asks for what suits it."""
    number, name = numbered
    index_name = f"{job.split}/{number:06d}.npz"
    with local_copy(name, job.directory) as path:
        found, faults = _scan(path, name, job.names)
        if chunk is None:
            end = found.end[-1] if found.end else 1
            chunk = max(1, round(job.settings.write.chunk_bytes * len(found.end) / end))
        index, sha256 = finish(found, chunk, read_blocks(path))
        size = path.stat().st_size
    if found.offset:
        save_index(job.directory / index_name, index)
    shard = Shard(name, index_name, size, len(index), index.labels, sha256)
    return _Adopted(shard, chunk, max((max(labels) for labels in found.label), default=-1), faults)


def _left_out(shard: str, fault: DataError) -> BadImage:
    return BadImage(shard, fault.found.removeprefix(shard).lstrip(": "))


def _scan(path: Path, name: str, names: dict[str, int]) -> tuple[Scan, tuple[DataError, ...]]:
    faults: list[DataError] = []
    with file_reader(path) as read_at:
        found = scan(name, path.stat().st_size, read_at, names, faults.append)
    return found, tuple(faults)

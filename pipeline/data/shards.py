"""One shard: written, checked and indexed by whichever process is free.

Shard k of a split holds the items k·n … (k+1)·n-1 of the source's shuffled order, but for those that
cannot be decoded. So any process can write any shard, and a shard that is there need not be written again.

    NUMBER.tar    appears whole, by rename
    NUMBER.json   what was written, after the tar: the shard is done
    NUMBER.npz    index, made from the tar once the size of chunks is known
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from webdataset import TarWriter

from pipeline.config import DatasetSettings, WriteSettings
from pipeline.data.decode import decode
from pipeline.data.files import file_reader
from pipeline.data.index import finish, read_blocks, save_index
from pipeline.data.labels import label_member
from pipeline.data.manifest import BadImage, Shard
from pipeline.data.philox import permutation
from pipeline.data.scan import scan
from pipeline.data.sources.catalog import open_source
from pipeline.data.sources.source import Item, Source, SourceSplit
from pipeline.errors import DataError
from pipeline.rundir import read_json, write_json

_POOL_SHARDS = 4  # shards that share their blocks, so each block is read at most about so many times
_NAME_BYTES = 90  # of a key: what fits the name field of every tar


@dataclass(frozen=True, slots=True)
class Task:
    """What the shards of one split are made from. `plan` names the whole: another plan, other shards."""

    settings: DatasetSettings
    split: str
    directory: Path
    plan: str


@dataclass(frozen=True, slots=True)
class Written:
    """One shard on the disk; `image_bytes` without the tar's own."""

    number: int
    items: int
    samples: int
    image_bytes: int
    sha256: str
    bad: tuple[BadImage, ...]


_opened: dict[str, Source] = {}  # plan → source: opened once by each process that writes for it


def keep_open(plan: str, source: Source) -> None:
    """Use this source for the shards of `plan`; those of older plans are let go."""
    _opened.clear()
    _opened[plan] = source


def shuffled(seed: int, split: str, source: SourceSplit, pool: int) -> NDArray[np.int64]:
    """The order in which the items of a split are written.

    Blocks are permuted, then the items of each `pool` neighbours; with blocks of one item, as most sources
    have, the first alone is a permutation of everything.
    """
    sizes = source.blocks()
    blocks = permutation(seed, f"write/{split}", 0, len(sizes))
    first = np.cumsum(sizes) - sizes
    start = np.repeat(first[blocks], sizes[blocks])
    line = np.cumsum(sizes[blocks]) - sizes[blocks]
    order = start + np.arange(len(start)) - np.repeat(line, sizes[blocks])
    if len(sizes) < len(source):
        for number, begin in enumerate(range(0, len(order), pool)):
            part = order[begin : begin + pool]
            order[begin : begin + pool] = part[permutation(seed, f"write/{split}/pool", number, len(part))]
    return np.asarray(order)


def write_shard(task: Task, number: int) -> Written:
    """Write shard `number`, unless it is there already."""
    done = task.directory / f"{number:06d}.json"
    known = read_json(done)
    if known is not None:
        return Written(**{**known, "bad": tuple(BadImage(**bad) for bad in known["bad"])})
    if task.plan not in _opened:
        keep_open(task.plan, open_source(task.settings))
    source = _opened[task.plan].splits[task.split]
    each = task.settings.write.shard_samples
    order = _order(task)
    numbers = order[number * each : (number + 1) * each]
    # Another process may be at the same shard, started again after this one was given up.
    part = task.directory / f"{number:06d}.{uuid.uuid4().hex}.part"
    bad: list[BadImage] = []
    used: set[str] = set()
    image_bytes = 0
    with part.open("wb") as file:
        hashing = _Hashing(file)
        with TarWriter(hashing, encoder=False, mtime=0, user="vitline") as tar:
            for place, item in zip(numbers.tolist(), source.items(numbers), strict=True):
                pixels = decode(item.data)
                if isinstance(pixels, str):
                    bad.append(BadImage(item.key, pixels))
                    continue
                data, extension = resized(item, pixels, task.settings.write)
                key = member_key(item.key, place, used)
                tar.write({"__key__": key, extension: data, **label_member(item.label)})
                image_bytes += len(data)
    part.rename(task.directory / f"{number:06d}.tar")
    written = Written(number, len(numbers), len(used), image_bytes, hashing.hexdigest(), tuple(bad))
    write_json(done, dataclasses.asdict(written))
    return written


@lru_cache(maxsize=2)
def _order(task: Task) -> NDArray[np.int64]:
    pool = _POOL_SHARDS * task.settings.write.shard_samples
    return shuffled(task.settings.seed, task.split, _opened[task.plan].splits[task.split], pool)


def index_shard(task: Task, chunk: int, written: Written) -> Shard:
    """Read a shard back, as any other tar, compare it with what was written, and index it.

    Raises:
        DataError: the disk gives back something else.
    """
    path = task.directory / f"{written.number:06d}.tar"
    size = path.stat().st_size
    with file_reader(path) as read_at:
        found = scan(str(path), size, read_at, {})
    index, sha256 = finish(found, chunk, read_blocks(path))
    if sha256 != written.sha256 or len(index) != written.samples:
        raise DataError(
            f"{path} reads back as {len(index)} samples with SHA-256 {sha256}",
            f"{written.samples} samples with {written.sha256}, as written",
            "check the disk, delete this file and prepare the dataset again",
        )
    save_index(path.with_suffix(".npz"), index)
    return Shard(
        f"{task.split}/{path.name}", f"{task.split}/{path.stem}.npz", size, len(index), index.labels, sha256
    )


class _Hashing:
    """A file that is written once from start to end, and hashed on the way."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._file.write(data)
        return len(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def member_key(key: str, number: int, used: set[str]) -> str:
    """A key that names a sample in a tar: no dots (WebDataset cuts names there), short, unique in `used`."""
    name = key.replace(".", "_").strip("/")
    if len(name.encode()) > _NAME_BYTES or name in used:
        kept = name.encode()[-_NAME_BYTES + 12 :].decode(errors="ignore").lstrip("/")
        name = f"{kept}-{number}"
    used.add(name)
    return name


def resized(item: Item, pixels: NDArray[np.uint8], settings: WriteSettings) -> tuple[bytes, str]:
    """The image with its shorter side reduced to `shorter_side`, as baseline JPEG with a restart marker
    behind each MCU, so that parts can be cut out (jpeg_part.py); or its own bytes."""
    height, width = pixels.shape[:2]
    side = settings.shorter_side
    if side is None or min(height, width) <= side:
        return item.data, item.extension
    scale = side / min(height, width)
    shape = (max(side, round(width * scale)), max(side, round(height * scale)))
    small = Image.fromarray(pixels).resize(shape, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    options = {"quality": settings.quality, "subsampling": "4:2:0", "progressive": False}
    small.save(buffer, "jpeg", restart_marker_blocks=1, **options)
    return buffer.getvalue(), "jpg"

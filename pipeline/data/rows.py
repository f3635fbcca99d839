"""Where the samples of a split lie, a chunk's worth at a time.

A lane reads from chunks of many shards at once, so whole indexes would fill the memory with rows that
nobody asks for: of each index only the rows of the chunks in use are kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import ShardIndex, load_index
from pipeline.data.manifest import Split

_ROWS_KEPT = 4_000_000  # 30 bytes each
_INDEXES_KEPT = 4

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """The samples of one chunk: arrays as in index.py, and the chunk's own place and hash."""

    offset: I64
    size: I64
    label: NDArray[np.int32]
    more: NDArray[np.int32]
    more_end: I64
    start: int
    end: int
    digest: bytes


class Rows:
    """Indexes of one split, read when first asked for; safe from many threads."""

    def __init__(self, directory: Path, split: Split) -> None:
        self._directory = directory
        self._split = split
        self._start = np.cumsum([0, *(shard.samples for shard in split.shards)], dtype=np.int64)
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], ChunkRows] = OrderedDict()
        self._count = 0
        self._whole: dict[int, ShardIndex] = {}

    def locate(self, ids: I64) -> tuple[I64, I64]:
        """Shard number and row in it of samples."""
        shard = np.searchsorted(self._start, ids, side="right") - 1
        return shard, ids - self._start[shard]

    def index(self, shard: int) -> ShardIndex:
        """The whole index of a shard; the last few are kept, for whoever goes through samples in order."""
        with self._lock:
            index = self._whole.get(shard)
        if index is None:
            entry = self._split.shards[shard]
            index = load_index(self._directory / entry.index, entry.samples)
            with self._lock:
                self._whole[shard] = index
                if len(self._whole) > _INDEXES_KEPT:
                    self._whole.pop(next(iter(self._whole)))
        return index

    def chunk(self, shard: int, chunk: int) -> ChunkRows:
        """The rows of one chunk."""
        with self._lock:
            rows = self._kept.get((shard, chunk))
            if rows is not None:
                self._kept.move_to_end((shard, chunk))
                return rows
        rows = self._cut(self.index(shard), chunk)
        with self._lock:
            if (shard, chunk) not in self._kept:
                self._count += len(rows.offset)
            self._kept[shard, chunk] = rows
            while self._count > _ROWS_KEPT and len(self._kept) > 1:
                self._count -= len(self._kept.popitem(last=False)[1].offset)
        return rows

    def _cut(self, index: ShardIndex, chunk: int) -> ChunkRows:
        inside = slice(chunk * self._split.chunk, (chunk + 1) * self._split.chunk)
        ends = index.more_end[inside]
        first = int(index.more_end[inside.start - 1]) if chunk else 0
        last = int(ends[-1])
        return ChunkRows(
            offset=index.offset[inside].copy(),
            size=index.size[inside].copy(),
            label=index.label[inside].copy(),
            more=index.more[first:last].copy(),
            more_end=ends - first,
            start=int(index.chunk_end[chunk - 1]) if chunk else 0,
            end=int(index.chunk_end[chunk]),
            digest=index.chunk_hash[chunk].tobytes(),
        )

    def labels(self, ids: I64) -> I64:
        """(n,) class numbers."""
        shards, rows = self.locate(ids)
        result = np.empty(len(ids), dtype=np.int64)
        for part in _groups(shards):
            shard = int(shards[part[0]])
            if len(part) > self._split.chunk:  # most of the shard: read it once, keep nothing
                result[part] = self.index(shard).label[rows[part]]
                continue
            chunk, row = np.divmod(rows[part], self._split.chunk)
            for inner in _groups(chunk):
                result[part[inner]] = self.chunk(shard, int(chunk[inner[0]])).label[row[inner]]
        return result

    def targets(self, ids: I64, num_classes: int) -> NDArray[np.float32]:
        """(n, num_classes) with 1 for each label of a sample, of which there may be several."""
        shards, rows = self.locate(ids)
        result = np.zeros((len(ids), num_classes), dtype=np.float32)
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            chunk, inside = divmod(row, self._split.chunk)
            found = self.chunk(shard, chunk)
            start = int(found.more_end[inside - 1]) if inside else 0
            result[place, found.label[inside]] = 1
            result[place, found.more[start : int(found.more_end[inside])]] = 1
        return result


def _groups(values: I64) -> list[I64]:
    """Places of equal values, one array for each value."""
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)

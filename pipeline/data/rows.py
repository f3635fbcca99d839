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

_ROWS_KEPT = 4_000_000  # 20 bytes each

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChunkRows:
    """The samples of one chunk: arrays (n,) as in index.py, and the chunk's own place and hash."""

    offset: I64
    size: I64
    label: NDArray[np.int32]
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

    def locate(self, ids: I64) -> tuple[I64, I64]:
        """Shard number and row in it of samples."""
        shard = np.searchsorted(self._start, ids, side="right") - 1
        return shard, ids - self._start[shard]

    def index(self, shard: int) -> ShardIndex:
        """The whole index of a shard, read anew."""
        entry = self._split.shards[shard]
        return load_index(self._directory / entry.index, entry.samples)

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
        return ChunkRows(
            offset=index.offset[inside].copy(),
            size=index.size[inside].copy(),
            label=index.label[inside].copy(),
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


def _groups(values: I64) -> list[I64]:
    """Places of equal values, one array for each value."""
    if len(values) == 0:
        return []
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)

"""Position → sample: which sample comes when, as arithmetic; no state, no table of samples.

Training counts positions p = 0, 1, 2, … through all epochs; step t of batch B takes tB … tB+B-1.

    epoch e = p div N, j = p mod N
    chunks of the dataset   [c0][c1][c2][c3][c4]…
      permuted by (seed, e)  [c3][c0][c4][c1][c2]…   the epoch's line of N samples
      cut into L lanes       |── lane 0 ──|── lane 1 ──|── lane 2 ──|
      j → lane j mod L, place j div L:  neighbours in a batch come from all lanes
      each lane cut into windows of V places, permuted inside by a keyed Feistel network

A rank reads few lanes, a lane only the chunks of its present window, and the batch is the same for
any number of ranks. One billion samples in 100,000 shards need about 100 MB and under a second.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import OrderSettings
from pipeline.data.feistel import combine, permute
from pipeline.data.philox import permutation, stream_key
from pipeline.errors import ConfigError

VERSION = 1  # of the arithmetic: a change here changes what every seed means
_WINDOW_CHUNKS = 16
_EPOCHS_KEPT = 2  # a batch may straddle two

I64 = NDArray[np.int64]


class Chunks:
    """Where the chunks of a dataset lie: shards of some samples each, cut every `chunk` samples."""

    def __init__(self, shard_samples: I64, chunk: int) -> None:
        self.samples = int(shard_samples.sum())
        self.chunk = chunk
        self._shard_samples = shard_samples
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-shard_samples // chunk))])
        self._first_sample = np.concatenate([[0], np.cumsum(shard_samples)])
        self.count = int(self._first_chunk[-1])

    def first_and_size(self, chunks: NDArray[np.uint32]) -> tuple[I64, I64]:
        """First sample, and number of samples, of each chunk."""
        shard = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        inside = (chunks - self._first_chunk[shard]) * self.chunk
        return self._first_sample[shard] + inside, np.minimum(self.chunk, self._shard_samples[shard] - inside)

    def sizes(self) -> NDArray[np.int32]:
        """(count,) samples of every chunk."""
        sizes = np.full(self.count, self.chunk, dtype=np.int32)
        filled = self._shard_samples > 0
        last = self._first_chunk[1:][filled] - 1
        sizes[last] = (self._shard_samples[filled] - 1) % self.chunk + 1
        return sizes


@dataclass(frozen=True, slots=True)
class _Line:
    """One epoch: its chunks in order, and where each starts in the line."""

    chunk: NDArray[np.uint32]
    start: I64


class Order:
    """The order of one dataset for one seed."""

    def __init__(self, chunks: Chunks, settings: OrderSettings, seed: int) -> None:
        if chunks.samples == 0:
            raise ConfigError("a dataset of 0 samples", "at least one sample", "choose another split or part")
        self.samples = chunks.samples
        self.lanes = min(settings.lanes, chunks.samples)
        self.window = settings.window or _WINDOW_CHUNKS * chunks.chunk
        self.seed = seed
        self._chunks = chunks
        self._key = stream_key(seed, "order/window")
        self._lines: OrderedDict[int, _Line] = OrderedDict()

    def constants(self) -> dict[str, int]:
        """What the order depends on besides the dataset and the seed."""
        return {"version": VERSION, "lanes": self.lanes, "window": self.window, "chunk": self._chunks.chunk}

    def chunks_at_once(self) -> float:
        """How many chunks a batch is drawn from: those in one window of each lane."""
        window = min(self.window, -(-self.samples // self.lanes))
        chunks = self.lanes * window * self._chunks.count / self.samples
        return min(max(1.0, chunks), float(self._chunks.count))

    def batch_positions(self, step: int, batch: int) -> I64:
        """(batch,) positions of step `step`, counted from 0, sorted by (epoch, lane, place)."""
        position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
        return np.asarray(position[np.lexsort(self.sort_keys(position))])

    def sort_keys(self, positions: I64) -> tuple[I64, I64, I64]:
        """(place, lane, epoch) of positions; the last is the first to sort by."""
        epoch, inside = np.divmod(positions, self.samples)
        return inside // self.lanes, inside % self.lanes, epoch

    def epochs(self, positions: I64) -> I64:
        """The epoch of each position."""
        return positions // self.samples

    def indices(self, positions: I64) -> I64:
        """(n,) sample numbers at these positions, from 0 to samples-1."""
        epochs, inside = np.divmod(positions, self.samples)
        result = np.empty(len(positions), dtype=np.int64)
        for epoch in np.unique(epochs):
            mask = epochs == epoch
            result[mask] = self._in_epoch(int(epoch), inside[mask])
        return result

    def batch_indices(self, step: int, batch: int) -> I64:
        """(batch,) sample numbers of step `step`, in the order in which ranks share them."""
        return self.indices(self.batch_positions(step, batch))

    def next_window(self, positions: I64) -> I64:
        """Sample numbers of the windows that follow those which `positions` open.

        A position opens a window when it is its first place; so over all batches every window but
        the first of each lane comes here once.
        """
        _, inside = np.divmod(positions, self.samples)
        return self._windows(positions[inside // self.lanes % self.window == 0], 1)

    def this_window(self, positions: I64) -> I64:
        """Sample numbers of the windows that hold `positions`; what to fetch first after a start."""
        return self._windows(positions, 0)

    def _windows(self, positions: I64, later: int) -> I64:
        epochs, inside = np.divmod(positions, self.samples)
        windows = np.stack([epochs, inside % self.lanes, inside // self.lanes // self.window + later])
        parts = [self._window(*window) for window in np.unique(windows, axis=1).T.tolist()]
        return np.concatenate([*parts, np.empty(0, dtype=np.int64)])

    def _window(self, epoch: int, lane: int, window: int) -> I64:
        first, length = self._lane(np.array([lane], dtype=np.int64))
        places = np.arange(
            window * self.window, min((window + 1) * self.window, int(length[0])), dtype=np.int64
        )
        return self._sample(epoch, int(first[0]) + places)

    def _lane(self, lane: I64) -> tuple[I64, I64]:
        """Where each lane starts in the line, and its length."""
        length, longer = divmod(self.samples, self.lanes)
        return lane * length + np.minimum(lane, longer), length + (lane < longer)

    def _in_epoch(self, epoch: int, inside: I64) -> I64:
        lane, place = inside % self.lanes, inside // self.lanes
        first, length = self._lane(lane)
        window, offset = np.divmod(place, self.window)
        size = np.minimum(self.window, length - window * self.window)
        key = combine(self._key, epoch, lane.view(np.uint64), window.view(np.uint64))
        return self._sample(epoch, first + window * self.window + permute(offset, size, key))

    def _sample(self, epoch: int, place: I64) -> I64:
        """Place in the epoch's line → sample number."""
        line = self._line(epoch)
        which = np.searchsorted(line.start, place, side="right") - 1
        first, _ = self._chunks.first_and_size(line.chunk[which])
        return np.asarray(first + (place - line.start[which]))

    def _line(self, epoch: int) -> _Line:
        line = self._lines.get(epoch)
        if line is None:
            while len(self._lines) >= _EPOCHS_KEPT:
                self._lines.popitem(last=False)
            chunk = permutation(self.seed, "order/chunks", epoch, self._chunks.count).astype(np.uint32)
            start = np.cumsum(self._chunks.sizes()[chunk], dtype=np.int64)
            start[1:] = start[:-1]
            start[0] = 0
            line = self._lines[epoch] = _Line(chunk, start)
        return line


def part(batch: I64, rank: int, world: int) -> I64:
    """Rank `rank`'s share of a batch in order: equal, adjoining parts.

    Raises:
        ConfigError: the batch does not divide; the nearest batches that do are named.
    """
    if len(batch) % world:
        lower = len(batch) // world * world
        near = [str(size) for size in (lower, lower + world) if size]
        raise ConfigError(
            f"a batch of {len(batch)} on {world} ranks",
            f"a batch that {world} divides",
            f"set batch to {' or '.join(near)}, or change the number of ranks",
        )
    share = len(batch) // world
    return np.asarray(batch[rank * share : (rank + 1) * share])

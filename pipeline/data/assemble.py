"""Threads that turn samples into rows of a batch.

Every decoder and resizer used here lets go of the interpreter's lock, so threads of one process are
enough: each writes straight into its rows of one uint8 batch. No queue, no pickling, no per-sample copy.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.data.decode import Decoded, Pixels, Wanted, decode_part
from pipeline.data.mix import Pairs, mix_pixels, mix_targets
from pipeline.data.mixture import AnyView

STAND_IN = 128  # level of every pixel of a sample that cannot be decoded, and of padding
PADDING = -1  # id of a row that holds no sample
# Below this (images of about 32 px, with the tar's 2 KiB) a sample takes some 40 µs, and Python holds its
# lock for half of them: two threads then hand it to and fro, at 0.5 to 1.0 times the speed of one.
_SMALL_BYTES = 4096
_ROWS = 16  # rows that one of several threads takes at once; even, so that pairs stay together

I64 = NDArray[np.int64]


class Augment(Protocol):
    """From an image to the pixels of row `row` of a batch."""

    def wanted(self, row: int, height: int, width: int) -> Wanted:
        """What of an image of this size is to be decoded."""
        ...

    def pixels(self, image: Decoded, row: int) -> Pixels:
        """(size, size, 3) uint8"""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's part of one step.

    images: (n, 3, H, W) uint8, channels last in memory; labels: (n,) int64, or (n, classes) float32 where
    samples are mixed or have several labels; ids: (n,) int64 in the split; weights: (n,) float32, 0 for a
    sample that could not be decoded and for padding.
    """

    step: int
    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class Bad:
    """A sample that could not be decoded."""

    id: int
    key: str
    reason: str


class Assembler:
    """A pool of threads for one view."""

    def __init__(self, view: AnyView, size: int, threads: int) -> None:
        self._view = view
        self._size = size
        threads = threads if view.bytes_per_sample > _SMALL_BYTES else 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._together = _ROWS if threads > 1 else None
        # Pinned memory is copied to a device while the next step computes; torch keeps and reuses it.
        self._pin = torch.cuda.is_available()

    def start(
        self, step: int, ids: I64, augment: Augment, *, pairs: Pairs | None = None, soft: bool = False
    ) -> Pending:
        """Begin to fill a batch with these samples; PADDING stays empty. `pairs` are mixed; `soft` asks
        for labels as (n, classes)."""
        real = np.flatnonzero(ids != PADDING)
        labels = np.zeros(len(ids), dtype=np.int64)
        labels[real] = self._view.labels_of(ids[real])
        pixels = torch.empty((len(ids), self._size, self._size, 3), dtype=torch.uint8, pin_memory=self._pin)
        if len(real) < len(ids):  # an assignment to no row at all goes through the whole batch
            pixels[torch.from_numpy(ids == PADDING)] = STAND_IN
        weights = torch.from_numpy((ids != PADDING).astype(np.float32))
        batch = Batch(
            step, pixels.permute(0, 3, 1, 2), torch.from_numpy(labels), weights, torch.from_numpy(ids.copy())
        )
        shards, places = self._view.locate(ids)
        together = self._together or max(1, len(real))  # one thread: who waits is woken once a batch
        jobs = [
            self._pool.submit(self._fill, rows, shards[rows], places[rows], pixels.numpy(), augment, pairs)
            for rows in (real[start : start + together] for start in range(0, len(real), together))
        ]
        return Pending(batch, jobs, self._view, pairs, soft or pairs is not None)

    @torch.inference_mode()  # a tenth less for each resize of a small image: nothing here has a gradient
    def _fill(
        self, rows: I64, shards: I64, places: I64, pixels: Pixels, augment: Augment, pairs: Pairs | None
    ) -> list[tuple[int, str]]:
        """Fill some rows; returns (row, reason) of those that cannot be decoded."""
        bad = []
        read = self._view.read_row
        for row, shard, place in zip(rows.tolist(), shards.tolist(), places.tolist(), strict=True):
            image = decode_part(read(shard, place), partial(augment.wanted, row))
            if isinstance(image, str):
                bad.append((row, image))
                pixels[row] = STAND_IN
            else:
                pixels[row] = augment.pixels(image, row)
        if pairs:
            lost = {row // 2 for row, _ in bad}
            for row in rows[::2].tolist():
                if row // 2 not in lost:
                    mix_pixels(pixels, row, pairs)
        return bad

    def close(self) -> None:
        """Finish what has begun, drop the rest, end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Pending:
    """A batch that is being filled."""

    batch: Batch
    jobs: list[Future[list[tuple[int, str]]]]
    view: AnyView
    pairs: Pairs | None
    soft: bool

    def finish(self) -> tuple[Batch, list[Bad]]:
        """Wait for the batch; an error in a thread is raised here."""
        bad = []
        for job in self.jobs:
            for row, reason in job.result():
                sample = int(self.batch.ids[row])
                self.batch.weights[row] = 0
                bad.append(Bad(sample, self.view.key(sample), reason))
        if not self.soft:
            return self.batch, bad
        targets = self.view.targets_of(self.batch.ids.numpy())
        if self.pairs:
            targets = mix_targets(targets, self.batch.weights.numpy() > 0, self.pairs)
        return replace(self.batch, labels=torch.from_numpy(targets)), bad

"""A part of a split: which samples, in which numbering. All draws are by (seed, fingerprint) alone.

all samples ──exclude──▶ rest ──samples──▶ subset, even over classes ──held_out──▶ kept │ held_out
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataView, OrderSettings
from pipeline.data.cache import NodeCache
from pipeline.data.exclusions import read_exclusions
from pipeline.data.manifest import Manifest, Split, digest, load_manifest
from pipeline.data.order import Chunks, Order
from pipeline.data.philox import permutation, uniforms
from pipeline.data.remote import is_remote
from pipeline.data.store import Store
from pipeline.errors import UserError

I64 = NDArray[np.int64]


class View:
    """Samples 0 … samples-1 of a view. `ids` are their ids in the split, rising; None: the same numbers.

    `multi_label`: samples may have several labels; `labels()` then gives the first of each.
    """

    def __init__(self, manifest: Manifest, split: Split, store: Store, ids: I64 | None) -> None:
        self.classes = manifest.classes
        self.num_classes = len(manifest.classes)
        self.samples = split.samples if ids is None else len(ids)
        self.ids = ids
        self.store = store
        self.chunk = split.chunk
        self.split_samples = split.samples
        self.num_shards = len(split.shards)
        self.bytes_per_sample = sum(shard.bytes for shard in split.shards) / max(1, split.samples)
        self.multi_label = split.multi_label
        self._split = split
        chosen = [] if ids is None else [digest([ids.astype("<i8").tobytes().hex()])]
        self.fingerprint = digest([split.fingerprint, *chosen]) if chosen else split.fingerprint

    def order(self, settings: OrderSettings, seed: int) -> Order:
        """The order of this view's samples. Shards are runs of neighbours; a drawn part counts as one."""
        runs = [self.samples] if self.ids is not None else [shard.samples for shard in self._split.shards]
        return Order(Chunks(np.array(runs, dtype=np.int64), self.chunk), settings, seed)

    def sample_id(self, index: I64) -> I64:
        """Place in the view → id in the split."""
        return index if self.ids is None else self.ids[index]

    def labels(self) -> I64:
        """(samples,) class numbers."""
        return self.labels_of(self.sample_id(np.arange(self.samples, dtype=np.int64)))

    def labels_of(self, ids: I64) -> I64:
        """(n,) class numbers of the samples with these ids."""
        return self.store.rows.labels(ids)

    def targets_of(self, ids: I64) -> NDArray[np.float32]:
        """(n, classes) with 1 for each label of a sample."""
        return self.store.rows.targets(ids, self.num_classes)

    def locate(self, ids: I64) -> tuple[I64, I64]:
        """Shard number and row in it; what `read_row` takes."""
        return self.store.rows.locate(ids)

    def read_row(self, shard: int, row: int) -> bytes:
        """The encoded image of a sample, by its place."""
        return self.store.read(shard, row)

    def read(self, sample: int) -> bytes:
        """The encoded image of the sample with this id."""
        shard, row = self.locate(np.array([sample], dtype=np.int64))
        return self.read_row(int(shard[0]), int(row[0]))

    def key(self, sample: int) -> str:
        """Key of the sample with this id."""
        return self.shard_and_key(sample)[1]

    def shard_and_key(self, sample: int) -> tuple[str, str]:
        return self.store.key(sample)

    def announce(self, ids: I64) -> None:
        """These samples will be read soon."""
        self.store.announce(ids)

    def close(self) -> None:
        """Drop what is announced and not yet fetched."""
        self.store.close()


def open_view(view: DataView, root: Path) -> View:
    """Open what `view` describes; its path is relative to `root`.

    Raises:
        DataError: there is no dataset, or it is damaged.
        UserError: more samples are asked for than there are, a part would be empty, or the exclusions
            are those of another dataset.
    """
    directory = root / view.path
    manifest = load_manifest(directory)
    split = manifest.splits[view.split]
    store = Store(directory, split, _cache(manifest, split))
    if view.samples is None and view.part == "all" and view.exclude is None:
        return View(manifest, split, store, None)
    ids = np.arange(split.samples, dtype=np.int64)
    if view.exclude is not None:
        ids = np.setdiff1d(ids, read_exclusions(root / view.exclude, split))
    if view.samples is not None:
        if view.samples > len(ids):
            raise UserError(
                f"{view.samples} samples asked for, {len(ids)} in split {view.split!r} of {directory}",
                f"at most {len(ids)}",
                "lower the number of samples",
            )
        ids = ids[subset(store.rows.labels(ids), view.samples, view.seed, split.fingerprint)]
    if view.part != "all":
        held = held_out(store.rows.labels(ids), view.held_out, view.seed, split.fingerprint)
        if not held.any() or held.all():
            raise UserError(
                f"a share of {view.held_out} of {len(ids)} samples leaves one part empty",
                "both parts to hold at least one sample",
                "change `held_out`, or use more samples",
            )
        ids = ids[held if view.part == "held_out" else ~held]
    return View(manifest, split, store, ids)


def _cache(manifest: Manifest, split: Split) -> NodeCache | None:
    """The node's cache, if any shard of the split is remote."""
    if not any(is_remote(shard.name) for shard in split.shards):
        return None
    default = Path(tempfile.gettempdir()) / f"vitline-cache-{os.getuid()}"
    directory = Path(manifest.cache.directory) if manifest.cache.directory else default
    return NodeCache(directory, int(manifest.cache.limit_gib * 2**30))


def subset(labels: I64, count: int, seed: int, fingerprint: str) -> I64:
    """(count,) rising places of a subset drawn evenly over classes.

    Each class gives its samples one by one in random order, round after round, until there are enough;
    which classes give one more in the last round is random too. A class that runs out gives no more.
    """
    turn = _turns(labels, seed, f"subset/{fingerprint}")
    tie = uniforms(seed, f"subset/class/{fingerprint}", 0, labels, 1)[:, 0]
    return np.sort(np.lexsort((tie, turn))[:count])


def held_out(labels: I64, share: float, seed: int, fingerprint: str) -> NDArray[np.bool_]:
    """(n,) True for the round(share · n) samples that are held out, the same share of each class.

    Each class's samples are spread evenly over (0, 1) with a random start; the first ones are taken.
    """
    purpose = f"held_out/{fingerprint}"
    turn = _turns(labels, seed, purpose)
    start = uniforms(seed, f"{purpose}/class", 0, labels, 1)[:, 0]
    place = (turn + start) / np.bincount(labels)[labels]
    held = np.zeros(len(labels), dtype=bool)
    held[np.lexsort((turn, place))[: round(share * len(labels))]] = True
    return held


def _turns(labels: I64, seed: int, purpose: str) -> I64:
    """(n,) place of each sample among those of its class, in random order."""
    order = permutation(seed, purpose, 0, len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    starts = np.cumsum(counts) - counts
    turn = np.empty(len(labels), dtype=np.int64)
    turn[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    return turn

"""Several datasets by weight, in one deterministic order: which dataset does position p take from?

Positions come in cycles of M = 4096. Of each, dataset k gets m_k, its share of the weights rounded and at
least one, spread evenly over the cycle (stride scheduling). So (dataset, own position) is a function of p
alone, and each dataset goes through its own epochs in its own order at its own pace.

The classes are the union of the datasets' classes by name; datasets whose classes are bare numbers can be
mixed only if they have equally many. Sample ids count through the datasets' splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataMixture, DataView, OrderSettings
from pipeline.data.manifest import digest
from pipeline.data.order import Order
from pipeline.data.view import View, open_view
from pipeline.errors import UserError

CYCLE = 4096

I64 = NDArray[np.int64]


class Strides:
    """The schedule for some weights."""

    def __init__(self, weights: Sequence[float]) -> None:
        share = np.asarray(weights, dtype=np.float64) / sum(weights)
        self.counts = np.maximum(1, np.rint(share * CYCLE)).astype(np.int64)
        self.counts[np.argmax(self.counts)] += CYCLE - self.counts.sum()
        times = [(np.arange(count) + 0.5) / count for count in self.counts]
        dataset = np.repeat(np.arange(len(times)), self.counts)
        rank = np.concatenate([np.arange(count) for count in self.counts])
        order = np.lexsort((dataset, np.concatenate(times)))
        self._dataset, self._rank = dataset[order], rank[order]

    def split(self, positions: I64) -> tuple[I64, I64]:
        """(dataset, own position) of each position."""
        cycle, place = np.divmod(positions, CYCLE)
        dataset = self._dataset[place]
        return dataset, cycle * self.counts[dataset] + self._rank[place]


class MixedOrder:
    """As `Order`, over several of them. Indices count through the datasets: all of the first, then …"""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float]) -> None:
        self.samples = sum(order.samples for order in orders)
        self._orders = orders
        self._strides = Strides(weights)
        self._first = np.cumsum([0, *(order.samples for order in orders)], dtype=np.int64)

    def constants(self) -> dict[str, object]:
        parts = [order.constants() for order in self._orders]
        return {"parts": parts, "shares": self._strides.counts.tolist()}

    def batch_positions(self, step: int, batch: int) -> I64:
        """(batch,) positions of step `step`, sorted by (dataset, epoch, lane, place)."""
        positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
        dataset, own = self._strides.split(positions)
        keys = np.empty((4, batch), dtype=np.int64)
        keys[3] = dataset
        for number, order in enumerate(self._orders):
            mine = dataset == number
            keys[:3, mine] = order.sort_keys(own[mine])
        return np.asarray(positions[np.lexsort(tuple(keys))])

    def indices(self, positions: I64) -> I64:
        return self._each(positions, Order.indices, shifted=True)

    def epochs(self, positions: I64) -> I64:
        """Each position's epoch in its own dataset."""
        return self._each(positions, Order.epochs, shifted=False)

    def next_window(self, positions: I64) -> I64:
        return self._ahead(positions, Order.next_window)

    def this_window(self, positions: I64) -> I64:
        return self._ahead(positions, Order.this_window)

    def _each(self, positions: I64, function: object, *, shifted: bool) -> I64:
        assert callable(function)
        dataset, own = self._strides.split(positions)
        result = np.empty(len(positions), dtype=np.int64)
        for number, order in enumerate(self._orders):
            mine = dataset == number
            result[mine] = function(order, own[mine]) + (self._first[number] if shifted else 0)
        return result

    def _ahead(self, positions: I64, function: object) -> I64:
        assert callable(function)
        dataset, own = self._strides.split(positions)
        parts = [
            function(order, own[dataset == number]) + self._first[number]
            for number, order in enumerate(self._orders)
        ]
        return np.concatenate(parts)


class MixedView:
    """As `View`, over several of them. Ids count through the datasets' splits, one after the other.

    `samples` is the sum over the datasets; an epoch of this view is as many positions.
    """

    def __init__(self, parts: Sequence[View], weights: Sequence[float]) -> None:
        self._parts = parts
        self._weights = tuple(weights)
        self.classes = tuple(dict.fromkeys(name for part in parts for name in part.classes))
        self.num_classes = len(self.classes)
        self.samples = sum(part.samples for part in parts)
        self.bytes_per_sample = max(part.bytes_per_sample for part in parts)
        self.multi_label = any(part.multi_label for part in parts)
        self.fingerprint = digest(
            f"{part.fingerprint} {weight}" for part, weight in zip(parts, weights, strict=True)
        )
        number = {name: place for place, name in enumerate(self.classes)}
        self._numbers = [np.array([number[name] for name in part.classes], dtype=np.int64) for part in parts]
        self._first_index = np.cumsum([0, *(part.samples for part in parts)], dtype=np.int64)
        self._first_id = np.cumsum([0, *(part.split_samples for part in parts)], dtype=np.int64)
        self._first_shard = np.cumsum([0, *(part.num_shards for part in parts)], dtype=np.int64)

    def order(self, settings: OrderSettings, seed: int) -> MixedOrder:
        """Each dataset is ordered for itself, with another seed, and the strides bring them together."""
        orders = [part.order(settings, seed + 7919 * number) for number, part in enumerate(self._parts)]
        return MixedOrder(orders, self._weights)

    def sample_id(self, index: I64) -> I64:
        result = np.empty(len(index), dtype=np.int64)
        for number, mine, own in _by_part(index, self._first_index):
            result[mine] = self._parts[number].sample_id(own) + self._first_id[number]
        return result

    def labels(self) -> I64:
        return self.labels_of(self.sample_id(np.arange(self.samples, dtype=np.int64)))

    def labels_of(self, ids: I64) -> I64:
        result = np.empty(len(ids), dtype=np.int64)
        for number, mine, own in _by_part(ids, self._first_id):
            result[mine] = self._numbers[number][self._parts[number].labels_of(own)]
        return result

    def targets_of(self, ids: I64) -> NDArray[np.float32]:
        result = np.zeros((len(ids), self.num_classes), dtype=np.float32)
        for number, mine, own in _by_part(ids, self._first_id):
            result[np.ix_(mine, self._numbers[number])] = self._parts[number].targets_of(own)
        return result

    def locate(self, ids: I64) -> tuple[I64, I64]:
        shard, row = np.empty((2, len(ids)), dtype=np.int64)
        for number, mine, own in _by_part(ids, self._first_id):
            shard[mine], row[mine] = self._parts[number].locate(own)
            shard[mine] += self._first_shard[number]
        return shard, row

    def read_row(self, shard: int, row: int) -> bytes:
        number = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
        return self._parts[number].read_row(shard - int(self._first_shard[number]), row)

    def key(self, sample: int) -> str:
        return self.shard_and_key(sample)[1]

    def shard_and_key(self, sample: int) -> tuple[str, str]:
        number = int(np.searchsorted(self._first_id, sample, side="right")) - 1
        return self._parts[number].shard_and_key(sample - int(self._first_id[number]))

    def announce(self, ids: I64) -> None:
        for number, _, own in _by_part(ids, self._first_id):
            self._parts[number].announce(own)

    def close(self) -> None:
        for part in self._parts:
            part.close()


AnyView = View | MixedView


def _by_part(values: I64, first: I64) -> Iterator[tuple[int, I64, I64]]:
    """(part, places in `values` that fall to it, those values counted from the part's first)."""
    part = np.searchsorted(first, values, side="right") - 1
    for number in range(len(first) - 1):
        mine = np.flatnonzero(part == number)
        if len(mine):
            yield number, mine, values[mine] - first[number]


def open_data(data: DataView | DataMixture, root: Path) -> AnyView:
    """Open what `data` describes; see `open_view` for its errors.

    Raises:
        UserError: parts of a mixture number their classes instead of naming them, and not alike.
    """
    if isinstance(data, DataView):
        return open_view(data, root)
    parts = [open_view(part, root) for part in data.parts]
    _check_names(parts, [part.path for part in data.parts])
    return MixedView(parts, data.weights)


def _check_names(parts: Sequence[View], places: Sequence[str]) -> None:
    """Numbers stand where nobody gave names (adopted shards): class 3 of one dataset is then no more the
    class 3 of another than any other is."""
    bare = [
        (place, part.num_classes)
        for place, part in zip(places, parts, strict=True)
        if part.classes == tuple(str(number) for number in range(part.num_classes))
    ]
    if len({classes for _, classes in bare}) > 1:
        listed = " and ".join(f"{classes} in {place}" for place, classes in bare)
        raise UserError(
            f"a mixture of datasets whose classes are bare numbers ({listed})",
            "class names, by which classes of several datasets are told apart or joined",
            "list the names under `classes` of these datasets",
        )

"""Which samples a batch holds, without reading an image: `vitline data order`."""

from __future__ import annotations

from typing import Any

from pipeline.config import OrderSettings
from pipeline.data.order import Chunks, Order, part
from pipeline.data.view import View


def describe_batch(
    view: View, order: OrderSettings, *, seed: int, batch: int, step: int, ranks: int = 1
) -> list[dict[str, Any]]:
    """One line a sample of batch `step` (counted from 0), in the order in which ranks share it.

    Raises:
        ConfigError: the batch does not divide by the ranks.
    """
    arithmetic = Order(Chunks(view.shard_samples, view.chunk), order, seed)
    positions = arithmetic.batch_positions(step, batch)
    lines = []
    for rank in range(ranks):
        own = part(positions, rank, ranks)
        indices = arithmetic.indices(own)
        for position, index, sample in zip(own, indices, view.sample_id(indices), strict=True):
            shard, key = view.store.key(int(sample))
            lines.append(
                {
                    "step": step,
                    "position": int(position),
                    "epoch": int(position) // view.samples,
                    "rank": rank,
                    "index": int(index),
                    "id": int(sample),
                    "shard": shard,
                    "key": key,
                }
            )
    return lines

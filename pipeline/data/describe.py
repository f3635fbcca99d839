"""Which samples a batch holds, without reading an image: `vitline data order`."""

from __future__ import annotations

from typing import Any

from pipeline.config import OrderSettings
from pipeline.data.mixture import AnyView
from pipeline.data.order import part


def describe_batch(
    view: AnyView, order: OrderSettings, *, seed: int, batch: int, step: int, ranks: int = 1
) -> list[dict[str, Any]]:
    """One line a sample of batch `step` (counted from 0), in the order in which ranks share it.

    Raises:
        ConfigError: the batch does not divide by the ranks.
    """
    arithmetic = view.order(order, seed)
    positions = arithmetic.batch_positions(step, batch)
    lines = []
    for rank in range(ranks):
        own = part(positions, rank, ranks)
        indices = arithmetic.indices(own)
        epochs = arithmetic.epochs(own)
        for position, epoch, index, sample in zip(own, epochs, indices, view.sample_id(indices), strict=True):
            shard, key = view.shard_and_key(int(sample))
            lines.append(
                {
                    "step": step,
                    "position": int(position),
                    "epoch": int(epoch),
                    "rank": rank,
                    "index": int(index),
                    "id": int(sample),
                    "shard": shard,
                    "key": key,
                }
            )
    return lines

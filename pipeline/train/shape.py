"""How the samples of a step lie over ranks and time. Without PyTorch: the driver knows it too."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchShape:
    """batch = world × micro_batch × accumulation, never rounded."""

    batch: int  # samples in a step, over all ranks
    micro_batch: int  # samples a rank holds at once
    accumulation: int  # micro-batches in a step

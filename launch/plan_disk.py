"""What a run keeps on disk: checkpoints, weights, logs, the shards that it writes; and copies elsewhere.

    newest `keep`, and the best one with `keep_best` ───────┐
    for good: one at or after each multiple of `keep_every` ─┼─► local, and as many at `checkpoint.remote`
    the one in the making ──────────────────────────────────┘

Whatever the ZeRO stage, a checkpoint is the float32 masters and what the optimizer keeps, each once.
"""

from __future__ import annotations

from collections.abc import Mapping

from launch.plan_answer import Disk, Training
from launch.plan_data import DataSize
from pipeline.config import PretrainSettings

_SAMPLE_LOG_BYTES = 8
# Beyond those that stay, a copier holds the one that is being copied, and the next.
_COPIED = 2


def disk_of(
    settings: PretrainSettings,
    training: Training,
    moments: int,
    kept_for_good: int,
    sizes: Mapping[str, DataSize],
    transfer_bytes: int,
) -> Disk:
    """At its most, over the whole run.

    Args:
        moments: tensors that are kept for each parameter beside its master.
        kept_for_good: checkpoints that `keep_every` keeps; pipeline/train/checkpoint.py: outlived.
        sizes: of every dataset. transfer_bytes: of all fine-tunings.
    """
    data = [size.disk_bytes for size in sizes.values()]
    checkpoint = checkpoint_bytes(training.parameters, moments)
    remote = settings.checkpoint.remote is not None
    best = settings.checkpoint.keep_best is not None
    staying = settings.checkpoint.keep + best + kept_for_good
    return Disk(
        data=None if any(size is None for size in data) else sum(size or 0 for size in data),
        checkpoint=checkpoint,
        kept_for_good=kept_for_good,
        checkpoints=checkpoint * (staying + 1 + _COPIED * remote),
        remote=checkpoint * (staying + 1) if remote else 0,
        # The weights of the last step are kept beside an average, those of the best step beside the last.
        weights=4 * training.parameters * (1 + (settings.average is not None) + best),
        sample_log=_SAMPLE_LOG_BYTES * training.images if settings.log_samples else 0,
        transfer=transfer_bytes,
    )


def checkpoint_bytes(parameters: int, moments: int) -> int:
    """Tensors of one checkpoint over all ranks: float32 masters and moments, whatever the ZeRO stage."""
    return 4 * parameters * (1 + moments)

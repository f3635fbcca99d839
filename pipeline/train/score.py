"""Exact scores over all ranks: each sample counted once, on any number of them.

The last batch is padded with samples of weight 0, which count nowhere; what was counted must equal the
view's number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.data.loader import EvalLoader
from pipeline.errors import DataError, StopRequested
from pipeline.train.loop import normalise
from pipeline.train.world import World


@dataclass(frozen=True)
class Scores:
    """Of n samples. The rows, in order of sample id, are the same on every rank."""

    top1: float
    nll: float  # mean negative log likelihood, nats
    n: int
    ids: NDArray[np.int64]  # int64 (n,)
    labels: NDArray[np.int32]  # int32 (n,)
    predictions: NDArray[np.int32]  # int32 (n,)
    nlls: NDArray[np.float32]  # float32 (n,)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(n,) whether each prediction is right."""
        return np.equal(self.labels, self.predictions)


@torch.no_grad()
def score(
    forward: Callable[[torch.Tensor], torch.Tensor],
    batches: EvalLoader,
    world: World,
    expected: int,
    stop_asked: Callable[[], bool],
) -> Scores:
    """Score every sample; all ranks together.

    Args:
        forward: logits of normalised images, in evaluation mode.
        batches: the same number of batches on each rank.
        expected: samples that there are.
    """
    parts = []
    for batch in batches:
        if world.any(stop_asked()):
            raise StopRequested(
                "a stop was asked for while scoring", "the end of it", "run the same command again"
            )
        real = batch.weights > 0
        logits = forward(normalise(batch.images.to(world.device))).float().cpu()
        nll = F.cross_entropy(logits, batch.labels, reduction="none")
        rows = (batch.ids, batch.labels, logits.argmax(dim=1), nll)
        parts.append([row[real].numpy() for row in rows])
    mine = [np.concatenate(column) for column in zip(*parts, strict=True)]
    ids, labels, predictions, nlls = (np.concatenate(c) for c in zip(*world.gather(mine), strict=True))
    order = np.argsort(ids, kind="stable")
    bad = [x for found in world.gather([f"{b.key}: {b.reason}" for b in batches.quarantine]) for x in found]
    unreadable = f"; unreadable: {'; '.join(bad[:5])}" if bad else ""
    if len(ids) != expected or len(np.unique(ids)) != expected:
        raise DataError(
            f"{len(np.unique(ids))} of {expected} samples were scored, {len(ids)} rows{unreadable}",
            "each sample once",
            "repair or remove the unreadable images and prepare the dataset again",
        )
    return Scores(
        top1=float(np.mean(labels == predictions)),
        nll=float(np.mean(nlls, dtype=np.float64)),
        n=len(ids),
        ids=ids[order],
        labels=labels[order].astype(np.int32),
        predictions=predictions[order].astype(np.int32),
        nlls=nlls[order].astype(np.float32),
    )


def write_predictions(path: Path, scores: Scores, keys: Sequence[str]) -> None:
    """One row a test image: id, key, label, prediction, correct, nll. Written beside, then renamed."""
    table = pa.table(
        {
            "id": pa.array(scores.ids, pa.int64()),
            "key": pa.array(keys, pa.string()),
            "label": pa.array(scores.labels, pa.int32()),
            "prediction": pa.array(scores.predictions, pa.int32()),
            "correct": pa.array(scores.correct, pa.bool_()),
            "nll": pa.array(scores.nlls, pa.float32()),
        }
    )
    beside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, beside)
    beside.replace(path)

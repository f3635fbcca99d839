"""Exact scores over all ranks: each sample counted once, on any number of them.

The last batch is padded with samples of weight 0, which count nowhere; what was counted must equal the
view's number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pipeline.data.assemble import Batch
from pipeline.data.loader import EvalLoader
from pipeline.errors import DataError, StopRequested
from pipeline.train.loop import normalise
from pipeline.train.world import World
from pipeline.transfer.binning import calibration_error


@dataclass(frozen=True)
class Scores:
    """Of n samples. The rows, in order of sample id, are the same on every rank.

    `confidences`: probability given to each prediction. Both it and `nlls` are NaN for a classifier whose
    scores are no probabilities.
    """

    ids: NDArray[np.int64]  # int64 (n,)
    labels: NDArray[np.int32]  # int32 (n,)
    predictions: NDArray[np.int32]  # int32 (n,)
    nlls: NDArray[np.float32]  # float32 (n,), negative log likelihood, nats
    confidences: NDArray[np.float32]  # float32 (n,)

    @property
    def n(self) -> int:
        return len(self.ids)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(n,) whether each prediction is right."""
        return np.equal(self.labels, self.predictions)

    @property
    def top1(self) -> float:
        return float(np.mean(self.correct))

    @property
    def nll(self) -> float:
        """Mean, nats."""
        return float(np.mean(self.nlls, dtype=np.float64))

    @property
    def ece(self) -> float:
        """Expected calibration error: mean over samples of |confidence - accuracy| of their bin."""
        return calibration_error(self.confidences, self.correct)

    def metrics(self) -> dict[str, float]:
        """For result.json; what is not defined is left out."""
        found = {"eval/top1": self.top1, "eval/n": float(self.n)}
        if np.isfinite(self.nlls).all():
            found["eval/nll"] = self.nll
        if np.isfinite(self.confidences).all():
            found["eval/ece"] = self.ece
        return found


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

    def columns(images: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        labels = batch.labels
        logits = forward(images).float().cpu()
        nll = F.cross_entropy(logits, labels, reduction="none")
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        return [labels, prediction, nll, confidence]

    ids, labels, predictions, nlls, confidences = every_sample(columns, batches, world, expected, stop_asked)
    return Scores(
        ids=ids,
        labels=labels.astype(np.int32),
        predictions=predictions.astype(np.int32),
        nlls=nlls.astype(np.float32),
        confidences=confidences.astype(np.float32),
    )


@torch.no_grad()
def every_sample(
    columns: Callable[[torch.Tensor, Batch], Sequence[torch.Tensor]],
    batches: EvalLoader,
    world: World,
    expected: int,
    stop_asked: Callable[[], bool],
) -> list[NDArray[Any]]:
    """Ids, rising, and what `columns` makes of (normalised images, batch), of all ranks; on every rank.

    Raises:
        DataError: not each sample was there just once.
        StopRequested: a rank was asked to stop.
    """
    parts = []
    for batch in batches:
        if world.any(stop_asked()):
            raise StopRequested(
                "a stop was asked for while scoring", "the end of it", "run the same command again"
            )
        real = batch.weights > 0
        made = columns(normalise(batch.images.to(world.device)), batch)
        parts.append([row[real].numpy() for row in (batch.ids, *(column.cpu() for column in made))])
    mine = [np.concatenate(column) for column in zip(*parts, strict=True)]
    found = [np.concatenate(column) for column in zip(*world.gather(mine), strict=True)]
    ids = found[0]
    bad = [
        x for reasons in world.gather([f"{b.key}: {b.reason}" for b in batches.quarantine]) for x in reasons
    ]
    unreadable = f"; unreadable: {'; '.join(bad[:5])}" if bad else ""
    if len(ids) != expected or len(np.unique(ids)) != expected:
        raise DataError(
            f"{len(np.unique(ids))} of {expected} samples were scored, {len(ids)} rows{unreadable}",
            "each sample once",
            "repair or remove the unreadable images and prepare the dataset again",
        )
    order = np.argsort(ids, kind="stable")
    return [column[order] for column in found]


def write_predictions(path: Path, scores: Scores, keys: Sequence[str]) -> None:
    """One row a test image: id, key, label, prediction, correct, nll, confidence. Replaced by rename."""
    table = pa.table(
        {
            "id": pa.array(scores.ids, pa.int64()),
            "key": pa.array(keys, pa.string()),
            "label": pa.array(scores.labels, pa.int32()),
            "prediction": pa.array(scores.predictions, pa.int32()),
            "correct": pa.array(scores.correct, pa.bool_()),
            "nll": pa.array(scores.nlls, pa.float32()),
            "confidence": pa.array(scores.confidences, pa.float32()),
        }
    )
    beside = path.with_name(f".{path.name}.partial")
    pq.write_table(table, beside)
    beside.replace(path)

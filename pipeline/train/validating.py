"""Scores of the network as it stands, on the data that a training was told to validate on.

classification: top-1 and loss. masked_patches: loss and, where the target has classes, the share of hidden
patches whose colour is predicted right; no label is read. Each sample counts once, on any number of ranks.
"""

from __future__ import annotations

import time

import torch

from pipeline.data.assemble import Batch
from pipeline.data.mixture import open_data
from pipeline.train.objective import MaskedPatches
from pipeline.train.parts import Parts, make_eval_loader
from pipeline.train.probes import probe
from pipeline.train.score import every_sample, score


@torch.no_grad()
def validate(parts: Parts, step: int) -> dict[str, float]:
    """Metrics on `validate_on`, after `step` steps; all ranks together. The engine is left in evaluation
    mode. Of an average, only the one after the last step scores it."""
    job, attempt, engine = parts.job, parts.attempt, parts.engine
    if job.validate_on is None:
        return {}
    began = time.monotonic()
    view = open_data(job.validate_on, attempt.run)
    engine.training(False)

    def forward(images: torch.Tensor, *more: object) -> torch.Tensor:
        parts.beat("validate", step)
        return engine.forward(images, *more)

    objective = parts.objective
    with make_eval_loader(parts, view) as loader:
        if isinstance(objective, MaskedPatches):
            names: list[str] = []

            def columns(images: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
                judged = objective.judge(forward, images, batch.ids)
                names[:] = judged
                return list(judged.values())

            _, *rows = every_sample(columns, loader, attempt.world, view.samples, attempt.stop)
            found = {name: float(row.mean(dtype="float64")) for name, row in zip(names, rows, strict=True)}
        else:
            scores = score(forward, loader, attempt.world, view.samples, attempt.stop)
            found = {"top1": scores.top1, "loss": scores.nll}
    found |= probe(parts, forward)
    seconds = time.monotonic() - began
    attempt.report({"event": "validate", "step": step, **found, "n": view.samples, "seconds": seconds})
    return {f"val/{name}": value for name, value in found.items()}

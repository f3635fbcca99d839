"""Weights for others, from the last checkpoint: plain safetensors with the model's configuration, its
classes and how to prepare images for it. Needs no engine and no GPU.

    weights.safetensors         what evaluation and fine-tuning use: the Polyak average where there is one
    weights-last.safetensors    beside an average: the weights of the last step
    weights-best.safetensors    with checkpoint.keep_best: those of the best validation; chosen by what
                                validations score, so nothing that follows uses it by itself
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.interface import ImageModel
from model.masked import MaskedPatchModel
from model.weights.streaming import stream_weights
from pipeline.config import TrainJob
from pipeline.data.mixture import AnyView
from pipeline.train.attempt import Attempt
from pipeline.train.average import AVERAGE
from pipeline.train.best import Best, find_best, write_best
from pipeline.train.checkpoint import Checkpoint, complete_checkpoints
from pipeline.train.fragments import MASTER
from pipeline.train.loading import whole_reader
from pipeline.train.objective import Objective


def export_weights(
    job: TrainJob,
    attempt: Attempt,
    view: AnyView,
    module: ImageModel | MaskedPatchModel,
    model_config: Mapping[str, Any],
    objective: Objective,
    best: Best | None,
) -> None:
    """Write the weights of the last complete checkpoint, on rank 0; the others wait for it.

    Args:
        best: whose weights are written too.
        model_config: of what the objective keeps, before an engine took the module.
    """
    if attempt.world.rank == 0:
        attempt.check_fence()
        last = complete_checkpoints(attempt.job.checkpoints)[0]
        parameters = last.record["shapes"]
        # Buffers are constants of the architecture; no engine splits them.
        buffers = {name: value for name, value in module.state_dict().items() if name not in parameters}
        header = _header(job, attempt.digest, last.step, view, objective.classes(view.classes))
        files = {attempt.job.weights: MASTER}
        if job.settings.average is not None:
            beside = attempt.job.weights.with_name("weights-last.safetensors")
            files = {attempt.job.weights: AVERAGE, beside: MASTER}
        for path, kind in files.items():
            _stream(path, last, kind, buffers, objective, model_config, header)
        if best is not None:
            found = find_best(attempt.job.checkpoints, best)
            if isinstance(found, str):
                attempt.warn(f"the best checkpoint, of step {best.step}, cannot be exported: {found}")
            else:
                header |= {"step": str(best.step), f"val/{best.metric}": repr(best.value)}
                beside = attempt.job.weights.with_name("weights-best.safetensors")
                _stream(beside, found, MASTER, buffers, objective, model_config, header)
                write_best(attempt.job.checkpoints, asdict(best))
    attempt.world.barrier()


def _stream(
    path: Path,
    checkpoint: Checkpoint,
    kind: str,
    buffers: Mapping[str, torch.Tensor],
    objective: Objective,
    model_config: Mapping[str, Any],
    header: Mapping[str, str],
) -> None:
    """Parameter by parameter; a model of any size needs the memory of its largest one."""
    shapes = checkpoint.record["shapes"]
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    stored = {id(tensor): name for name, tensor in empty.items()}  # the objective may give other names
    kept = objective.kept({**buffers, **empty})
    with whole_reader(checkpoint, kind) as read:
        stream_weights(
            path, kept, lambda name: read(stored[id(kept[name])]), model_config, {**header, "weights": kind}
        )


def _header(job: TrainJob, digest: str, step: int, view: AnyView, classes: list[str]) -> dict[str, str]:
    augment = job.settings.augment
    preprocessing = {
        "image_size": job.settings.image_size,
        "evaluate": augment.evaluate,
        "larger": augment.larger,
        "scale": "(pixel - 127.5) / 127.5",
    }
    return {
        "job": digest,
        "step": str(step),
        "objective": job.settings.objective,
        "classes": json.dumps(classes),
        "preprocessing": json.dumps(preprocessing),
        "train_fingerprint": view.fingerprint,
    }

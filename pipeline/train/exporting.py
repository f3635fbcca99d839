"""Weights for others, from the last checkpoint: plain safetensors with the model's configuration, its
classes and how to prepare images for it. Needs no engine and no GPU.

    weights.safetensors         what evaluation and fine-tuning use: the Polyak average where there is one
    weights-last.safetensors    beside an average: the weights of the last step
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from model.interface import ImageModel
from model.masked import MaskedPatchModel
from model.weights.files import save_weights
from pipeline.config import TrainJob
from pipeline.data.mixture import AnyView
from pipeline.train.attempt import Attempt
from pipeline.train.average import AVERAGE
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.fragments import MASTER
from pipeline.train.loading import whole_tensors
from pipeline.train.objective import Objective


def export_weights(
    job: TrainJob,
    attempt: Attempt,
    view: AnyView,
    module: ImageModel | MaskedPatchModel,
    model_config: Mapping[str, Any],
    objective: Objective,
) -> None:
    """Write the weights of the last complete checkpoint, on rank 0; the others wait for it.

    Args:
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
            state: dict[str, torch.Tensor] = buffers | dict(whole_tensors(last, kind))
            save_weights(path, objective.kept(state), model_config, {**header, "weights": kind})
    attempt.world.barrier()


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

"""An evaluation job on one rank: a trained model scored on a locked test split, once.

Opening the split is recorded first, so that a score nobody kept has still been seen.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from model.config import config_from_dict
from model.weights.files import load_into, load_weights
from model.zoo import build
from pipeline.config import EvaluateJob
from pipeline.data.loader import EvalLoader
from pipeline.data.view import View, open_view
from pipeline.errors import ConfigError
from pipeline.rundir import RunDir
from pipeline.train.attempt import Attempt
from pipeline.train.score import score, write_predictions


def run_evaluation(job: EvaluateJob, attempt: Attempt, name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Score, keep the prediction of each image; metrics and outputs for result.json."""
    world = attempt.world
    view = open_view(job.data, attempt.run)
    try:
        state, config, _ = load_weights(attempt.run / job.weights)
        module = build(config_from_dict(config), initialise=True)
        load_into(module, state)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error), "the weights of a finished training", "run the training again"
        ) from error
    _check_classes(module.config.num_classes, view, job)
    module.to(world.device).eval()

    if world.rank == 0:
        record_opening(RunDir(attempt.run), attempt.digest, name, view.fingerprint)
    loader = EvalLoader(
        view,
        batch=job.batch,
        image_size=job.image_size,
        augment=job.augment,
        threads=job.threads,
        rank=world.rank,
        world=world.size,
    )
    try:
        scores = score(module, loader, world, view.samples, attempt.stop)
    finally:
        loader.close()
    if world.rank == 0:
        attempt.check_fence()
        write_predictions(attempt.job.predictions, scores, [view.key(int(i)) for i in scores.ids])
    world.barrier()
    attempt.report({"event": "done", "step": 0})
    outputs = {
        "predictions": attempt.relative(attempt.job.predictions),
        "test_fingerprint": view.fingerprint,
        "classes": list(view.classes),
    }
    return scores.metrics(), outputs


def record_opening(run: RunDir, digest: str, name: str, fingerprint: str) -> None:
    """Append one line to the run's list of openings."""
    line = json.dumps({"time": time.time(), "job": digest, "name": name, "dataset": fingerprint}) + "\n"
    descriptor = os.open(run.openings, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    try:
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_classes(num_classes: int, view: View, job: EvaluateJob) -> None:
    if num_classes != view.num_classes:
        raise ConfigError(
            f"{job.weights} has {num_classes} classes, {job.data.path} has {view.num_classes}",
            "a model trained on this dataset's classes",
            "evaluate on the dataset that the model was fine-tuned on",
        )

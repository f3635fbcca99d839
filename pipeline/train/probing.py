"""A probe on one rank: features of a network that is not trained, a classifier fitted to those of train.

    weights ──► features of train ──► classifier, all its choices made on train
                                          └─► opening recorded ──► features of test ──► predictions

The features are what the network's head reads; of a hidden layer after pre-training its output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.config import config_from_dict
from model.interface import ImageModel
from model.weights.adapt import adapt
from model.weights.files import load_into, load_weights
from model.zoo import build, create_model
from pipeline.config import FewShotProtocol, KnnProtocol, LinearProtocol, ProbeJob
from pipeline.data.loader import EvalLoader
from pipeline.data.view import View, held_out, open_view
from pipeline.errors import ConfigError, UserError
from pipeline.rundir import RunDir
from pipeline.train.attempt import Attempt
from pipeline.train.evaluating import record_opening
from pipeline.train.score import Scores, every_sample, write_predictions
from pipeline.transfer import knn, ridge
from pipeline.transfer.linear import fit_linear

# From features (n, D): prediction, negative log likelihood and confidence (n,) each, given the labels too.
Classifier = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def run_probe(job: ProbeJob, attempt: Attempt, name: str) -> tuple[dict[str, float], dict[str, Any]]:
    """Fit on train, score test, keep the prediction of each image; metrics and outputs for result.json."""
    train = _train_view(job, attempt)
    test = open_view(job.data, attempt.run)
    module = _network(job, attempt)
    _, labels, features = _features(module, train, job, attempt)
    classify, chosen = _fit(job, train, features, labels)
    if attempt.world.rank == 0:
        record_opening(RunDir(attempt.run), attempt.digest, name, test.fingerprint)
    ids, labels, features = _features(module, test, job, attempt)
    predictions, nlls, confidences = classify(features, labels)
    scores = Scores(
        ids=ids,
        labels=labels.numpy().astype(np.int32),
        predictions=predictions.numpy().astype(np.int32),
        nlls=nlls.numpy().astype(np.float32),
        confidences=confidences.numpy().astype(np.float32),
    )
    if attempt.world.rank == 0:
        attempt.check_fence()
        write_predictions(attempt.job.predictions, scores, [test.key(int(i)) for i in scores.ids])
    attempt.world.barrier()
    attempt.report({"event": "done", "step": 0})
    outputs = {
        "predictions": attempt.relative(attempt.job.predictions),
        "test_fingerprint": test.fingerprint,
        "train_fingerprint": train.fingerprint,
        "train_samples": train.samples,
        "classes": list(test.classes),
        **chosen,
    }
    return scores.metrics(), outputs


def _train_view(job: ProbeJob, attempt: Attempt) -> View:
    """The training images; a few of each class where the protocol says so."""
    view = open_view(job.train, attempt.run)
    if not isinstance(job.protocol, FewShotProtocol):
        return view
    shots, counts = job.protocol.shots, np.bincount(view.labels(), minlength=view.num_classes)
    if counts.min() < shots:
        poorest = int(counts.argmin())
        raise UserError(
            f"{counts[poorest]} training images of class {view.classes[poorest]}, and {shots} shots",
            "as many images of each class as shots",
            f"set transfer.protocol.shots to {counts[poorest]} or fewer, or leave the dataset out",
        )
    drawn = job.train.model_copy(update={"samples": shots * view.num_classes})
    view.close()
    return open_view(drawn, attempt.run)


def _network(job: ProbeJob, attempt: Attempt) -> ImageModel:
    """As pre-training left it, positions resized where the resolution differs; or drawn from the seed."""
    size = job.protocol.image_size
    try:
        if job.weights is None:
            module = create_model(
                job.model.name,
                num_classes=1,  # its head is not read
                image_size=size,
                representation=job.model.representation,
                generator=torch.Generator().manual_seed(job.seed),
                **job.model.options,
            )
        else:
            state, plain, _ = load_weights(attempt.run / job.weights)
            config = config_from_dict(plain)
            resized = replace(config, image_size=(size, size))
            module = build(resized, initialise=True)
            load_into(module, adapt(state, config, resized, new_head=False))
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(
            str(error),
            "the weights of a finished pre-training, and a resolution that fits the model",
            "run the pre-training again, or correct transfer.protocol.image_size",
        ) from error
    return module.to(attempt.world.device).eval()


def _features(
    module: ImageModel, view: View, job: ProbeJob, attempt: Attempt
) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]:
    """Ids (n,), labels int64 (n,) and features float32 (n, D) of all samples, in order of id; on the CPU."""
    loader = EvalLoader(
        view,
        batch=job.batch,
        image_size=job.protocol.image_size,
        augment=job.protocol.augment,
        threads=job.protocol.threads,
        rank=attempt.world.rank,
        world=attempt.world.size,
    )
    with loader:
        ids, labels, features = every_sample(
            lambda images, batch: (batch.labels, module.features(images).float()),
            loader,
            attempt.world,
            view.samples,
            attempt.stop,
        )
    return ids, torch.from_numpy(labels), torch.from_numpy(features)


def _fit(
    job: ProbeJob, view: View, features: torch.Tensor, labels: torch.Tensor
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier of the protocol, and what it chose, for result.json."""
    protocol = job.protocol
    if isinstance(protocol, LinearProtocol):
        held = held_out(labels.numpy(), protocol.held_out, job.seed, view.fingerprint)
        probe = fit_linear(features, labels, view.num_classes, torch.from_numpy(held), protocol.l2)
        return _from_logits(probe.logits), {
            "l2": probe.l2,
            "tried": [{"l2": l2, "top1": top1, "loss": loss} for l2, top1, loss in probe.tried],
        }
    if isinstance(protocol, KnnProtocol):
        return _from_votes(protocol, features, labels, view.num_classes), {}
    return _from_scores(ridge.fit(features, labels, view.num_classes, protocol.l2)), {}


def _from_scores(fitted: ridge.Ridge) -> Classifier:
    """Scores near ±1 are no probabilities: neither likelihood nor confidence."""

    def classify(
        features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        unknown = torch.full((len(features),), math.nan)
        return fitted.predict(features), unknown, unknown

    return classify


def _from_votes(
    protocol: KnnProtocol, train: torch.Tensor, train_labels: torch.Tensor, num_classes: int
) -> Classifier:
    """The share of votes is a confidence; a class without a vote would have an infinite likelihood."""

    def classify(
        features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shares = knn.votes(
            train,
            train_labels,
            features,
            num_classes,
            neighbours=protocol.neighbours,
            temperature=protocol.temperature,
        )
        confidence, prediction = shares.max(dim=1)
        return prediction, torch.full((len(features),), math.nan), confidence.clamp(max=1)

    return classify


def _from_logits(logits_of: Callable[[torch.Tensor], torch.Tensor]) -> Classifier:
    def classify(
        features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = logits_of(features)
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        return prediction, F.cross_entropy(logits, labels, reduction="none"), confidence

    return classify

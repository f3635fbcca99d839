"""What the features of a network in training are worth: few-shot ridge and nearest neighbours.

    bank: training images, evenly over classes ──► features ──┐
    validate_on: held-out images               ──► features ──┴──► val/few_shot_K, val/knn_top1

Features are what the head reads, taken on the way through the engine, so they are right at every ZeRO
stage. Each image is counted once on any number of ranks; nothing random is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.config import DataMixture, DataView
from pipeline.data.assemble import Batch
from pipeline.data.mixture import AnyView, open_data
from pipeline.errors import ConfigError
from pipeline.train.parts import Parts, make_eval_loader
from pipeline.train.score import every_sample
from pipeline.transfer import knn, ridge


def check_probes(parts: Parts) -> None:
    """Refuse probes that could not be done, before anything is trained."""
    validation = parts.job.settings.validation
    if validation.every is not None and parts.job.validate_on is None:
        raise ConfigError(
            "validation.every, and no data to validate on", "a held-out part", "leave validation.every out"
        )
    if not validation.few_shot and validation.knn is None:
        return
    if isinstance(parts.job.data, DataMixture) or parts.view.multi_label or parts.job.validate_on is None:
        raise ConfigError(
            "validation.few_shot or knn with a mixture, several labels an image, or no data to validate on",
            "one dataset with one label an image",
            "leave validation.few_shot and validation.knn out",
        )


def probe(parts: Parts, forward: Callable[..., torch.Tensor]) -> dict[str, float]:
    """The figures that the settings ask for; all ranks together, the engine in evaluation mode."""
    validation = parts.job.settings.validation
    if not validation.few_shot and validation.knn is None:
        return {}
    assert isinstance(parts.job.data, DataView), "check_probes was not asked"
    assert parts.job.validate_on is not None, "check_probes was not asked"
    run = parts.attempt.run
    data = parts.job.data
    # A part that was cut off stays as it is: a smaller draw would be cut elsewhere, and share images with it.
    if data.part == "all" and validation.bank < parts.view.samples:
        data = data.model_copy(update={"samples": validation.bank})
    bank = _features(parts, open_data(data, run), forward)
    asked = _features(parts, open_data(parts.job.validate_on, run), forward)

    def judge() -> dict[str, float]:
        found = {}
        for shots in validation.few_shot:
            rates = ridge.few_shot(*bank, *asked, parts.view.num_classes, shots=shots)
            found[f"few_shot_{shots}"] = sum(rates) / len(rates)
        if validation.knn is not None:
            named = knn.votes(*bank, asked[0], parts.view.num_classes, neighbours=validation.knn).argmax(1)
            found["knn_top1"] = float((named == asked[1]).double().mean())
        return found

    judged: dict[str, float] = parts.attempt.world.on_first(judge)
    return judged


def _features(
    parts: Parts, view: AnyView, forward: Callable[..., torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 (n, D) and labels int64 (n,), in order of id, on the CPU."""
    seen: list[torch.Tensor] = []

    def note(head: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        seen[:] = [inputs[0]]

    def columns(images: torch.Tensor, batch: Batch) -> list[torch.Tensor]:
        forward(images)
        return [seen[0].float(), batch.labels]

    head = parts.engine.module.get_submodule("head")
    hook = head.register_forward_pre_hook(note)
    try:
        with make_eval_loader(parts, view) as loader:
            _, features, labels = every_sample(
                columns, loader, parts.attempt.world, view.samples, parts.attempt.stop
            )
    finally:
        hook.remove()
    return torch.from_numpy(features), torch.from_numpy(labels)

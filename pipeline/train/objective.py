"""What a training asks of its network, as the loop sees it: images and labels in, a sum of losses out.

    classification    logits against labels (model/losses.py)
    masked_patches    predictions of hidden patches against the image itself (model/masked.py); reads no label

What is hidden in an image is a function of (seed, step, sample id): the same on any number of ranks, in any
micro-batch and after a resume, with nothing to save. In validation it is one of (seed, sample id).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from model.config import ModelConfig, ViTConfig
from model.interface import ImageModel
from model.losses import loss_sum
from model.masked import (
    Corruption,
    MaskedPatchModel,
    Shares,
    backbone_state,
    corruption_of,
    kept_config,
    mean_over_corrupted,
    patch_accuracies,
    patch_losses,
)
from pipeline.config import MaskedPatchSettings, TrainSettings
from pipeline.data.philox import uniforms
from pipeline.train.interface import Engine
from pipeline.train.world import World

Forward = Callable[..., torch.Tensor]
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """What belongs to the rows of a micro-batch beside pixels and labels."""

    step: int  # batches before this one
    weights: torch.Tensor  # (n,) float32, on the device
    ids: torch.Tensor  # (n,) int64, on the CPU


class Objective(ABC):
    """`loss_sum` and `figures` are called by all ranks together."""

    @abstractmethod
    def loss_sum(
        self, engine: Engine, images: torch.Tensor, labels: torch.Tensor, part: Part
    ) -> torch.Tensor:
        """Sum over a micro-batch of weight × loss; `images` are normalised, on the device as `labels`."""

    @abstractmethod
    def figures(self, world: World) -> dict[str, float]:
        """Means over the samples of all ranks since the last call, for the progress report."""

    def kept(self, state: State) -> State:
        """What is exported of the trained weights."""
        return state

    def kept_config(self, config: ModelConfig) -> ModelConfig:
        """The configuration that goes with `kept`."""
        return config

    def classes(self, names: Sequence[str]) -> list[str]:
        """What the outputs of `kept` stand for, given the classes of the training set."""
        return list(names)


class Classification(Objective):
    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings

    def loss_sum(
        self, engine: Engine, images: torch.Tensor, labels: torch.Tensor, part: Part
    ) -> torch.Tensor:
        return loss_sum(
            self._settings.loss,
            engine.forward(images),
            labels,
            label_smoothing=self._settings.label_smoothing,
            weight_B=part.weights,
        )

    def figures(self, world: World) -> dict[str, float]:
        return {}


class MaskedPatches(Objective):
    def __init__(self, settings: MaskedPatchSettings, module: MaskedPatchModel, seed: int) -> None:
        self._module = module
        self._shares = Shares(settings.corrupted, settings.masked, settings.swapped)
        self._patches = prod(module.config.grid)
        self._seed = seed
        self._right: torch.Tensor | None = None  # accuracies and weights, summed since the last report

    def loss_sum(
        self, engine: Engine, images: torch.Tensor, labels: torch.Tensor, part: Part
    ) -> torch.Tensor:
        corruption = self._draw("corruption", part.step, part.ids, images.device)
        predictions = engine.forward(images, corruption)
        accuracy = self._accuracy(predictions.detach(), images, corruption)
        if accuracy is not None:
            sums = torch.stack([(accuracy * part.weights).sum(), part.weights.sum()]).double()
            self._right = sums if self._right is None else self._right + sums
        return self._module.loss_sum(predictions, images, corruption, part.weights)

    def figures(self, world: World) -> dict[str, float]:
        right, counted = world.sums([0.0, 0.0] if self._right is None else self._right.tolist())
        self._right = None
        return {"masked_accuracy": right / counted} if counted else {}

    def judge(self, forward: Forward, images: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Loss and, where there are classes, accuracy of each image, (n,), for validation."""
        corruption = self._draw("corruption of validation", 0, ids, images.device)
        predictions = forward(images, corruption)
        losses = patch_losses(predictions, images, self._module.patch, self._module.target)
        found = {"loss": mean_over_corrupted(losses, corruption)}
        accuracy = self._accuracy(predictions, images, corruption)
        return found if accuracy is None else {**found, "masked_accuracy": accuracy}

    def kept(self, state: State) -> State:
        return backbone_state(state)

    def kept_config(self, config: ModelConfig) -> ModelConfig:
        assert isinstance(config, ViTConfig), "masked patch prediction of a network without patches"
        return kept_config(config)

    def classes(self, names: Sequence[str]) -> list[str]:
        return []

    def _draw(self, purpose: str, step: int, ids: torch.Tensor, device: torch.device) -> Corruption:
        # A row that holds no sample has the id -1 and counts nowhere.
        chances = uniforms(self._seed, purpose, step, ids.clamp(min=0).numpy(), 3 * self._patches)
        drawn = corruption_of(torch.from_numpy(chances).view(len(ids), 3, self._patches), self._shares)
        return Corruption(
            drawn.corrupted_BN.to(device, non_blocking=True),
            drawn.masked_BN.to(device, non_blocking=True),
            drawn.source_BN.to(device, non_blocking=True),
        )

    def _accuracy(
        self, predictions: torch.Tensor, images: torch.Tensor, corruption: Corruption
    ) -> torch.Tensor | None:
        """(n,) share of right answers for each image, or None where there are no classes."""
        found = patch_accuracies(predictions, images, self._module.patch, self._module.target)
        return None if found is None else mean_over_corrupted(found, corruption)


def make_objective(settings: TrainSettings, module: ImageModel | MaskedPatchModel, seed: int) -> Objective:
    """The objective that `module` was built for (starting.py)."""
    if isinstance(module, MaskedPatchModel):
        return MaskedPatches(settings.masked_patches, module, seed)
    return Classification(settings)


def masked_model(config: ModelConfig, settings: MaskedPatchSettings) -> MaskedPatchModel:
    """The network of masked patch prediction. Raises ValueError for one that it cannot train."""
    if not isinstance(config, ViTConfig):
        raise ValueError(f"model {config.name!r} has no patches to hide; choose a ViT or a hybrid")
    patches = prod(config.grid)
    if round(settings.corrupted * patches) == 0:
        raise ValueError(
            f"corrupted {settings.corrupted} of {patches} patches is none of them; set it to "
            f"{1 / patches:.3g} or more"
        )
    return MaskedPatchModel(config, settings.target)

"""How models are fine-tuned and judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Duration, Settings
from pipeline.config.reading import AugmentSettings
from pipeline.config.train import OptimizerSettings


class Protocol(Settings):
    """How a model is fine-tuned and judged on any transfer dataset. Results of different protocols
    are never compared. Every choice is made on a held-out part of train."""

    name: str
    image_size: int = Field(ge=1, description="px; positions are resized when it differs from pre-training")
    train_samples: int | None = Field(
        None, ge=1, description="size of the training set, drawn evenly over classes"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of train on which the learning rate is chosen"
    )
    duration: Duration
    batch: int = Field(ge=1)
    learning_rates: tuple[float, ...] = Field(
        min_length=1, description="grid; the best on the held-out part is kept"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(name="sgd", schedule="cosine"), description="its learning_rate comes from the grid"
    )
    augment: AugmentSettings = AugmentSettings()
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _rates_differ(self) -> Protocol:
        if len(set(self.learning_rates)) < len(self.learning_rates) or min(self.learning_rates) <= 0:
            raise ValueError("learning_rates must be positive and different from each other")
        return self


class TransferSettings(Settings):
    protocol: Protocol = Field(description="a file beside the configuration, or the settings themselves")
    datasets: tuple[str, ...] = Field(min_length=1, description="names under datasets:")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    starts: tuple[Literal["pretrained", "scratch"], ...] = Field(("pretrained", "scratch"), min_length=1)

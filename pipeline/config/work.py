"""What one worker does. Stages make these from the settings of the run; job.json holds them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.base import Settings
from pipeline.config.reading import AugmentSettings, DataMixture, DataView
from pipeline.config.train import ModelSettings, TrainSettings
from pipeline.config.transfer import ProbeProtocol


class TrainJob(Settings):
    """One training: read by pipeline/train/worker.py from job.json."""

    kind: Literal["train"] = "train"
    data: DataView | DataMixture
    validate_on: DataView | DataMixture | None = Field(None, description="scored once, after the last step")
    settings: TrainSettings
    start: str | None = Field(
        None, description="weights file to start from, relative to the run; None: scratch"
    )
    keep_head: bool = Field(False, description="of `start`, where it has as many classes; else a new one")
    seed: int


class EvaluateJob(Settings):
    """One scoring of a trained model; opens a test split."""

    kind: Literal["evaluate"] = "evaluate"
    data: DataView
    weights: str = Field(description="weights file, relative to the run")
    image_size: int
    augment: AugmentSettings
    batch: int = 256
    threads: int = 1


class ProbeJob(Settings):
    """A classifier fitted to the features of a network that is not trained; opens a test split."""

    kind: Literal["probe"] = "probe"
    train: DataView
    data: DataView
    weights: str | None = Field(None, description="weights file, relative to the run; None: drawn from seed")
    model: ModelSettings
    protocol: ProbeProtocol = Field(discriminator="kind")
    seed: int
    batch: int = 256

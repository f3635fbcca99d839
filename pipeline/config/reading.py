"""What is read of a prepared dataset, in which order, and what becomes of the pixels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Settings


class DataView(Settings):
    """A part of one split of a prepared dataset.

    `samples` draws a subset evenly over classes; `held_out` cuts off that share of what is left,
    evenly over classes too; `part` says which side of the cut this view is. Both draws depend on
    `seed`, the split's fingerprint and nothing else.
    """

    path: str = Field(description="the dataset's directory")
    split: Literal["train", "test"]
    samples: int | None = None
    held_out: float = 0.0
    part: Literal["all", "kept", "held_out"] = "all"
    seed: int = 0
    exclude: str | None = Field(
        None, description="file of samples that are left out first, as `vitline data duplicates` writes it"
    )


class DataMixture(Settings):
    """Several views at once, each as often as its weight says, in one order."""

    parts: tuple[DataView, ...] = Field(min_length=1)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="one a part, in any unit")

    @model_validator(mode="after")
    def _one_weight_each(self) -> DataMixture:
        if len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.weights)} weights for {len(self.parts)} parts")
        return self


class AugmentSettings(Settings):
    """From a decoded image to the pixels of a training sample, and of an evaluated one."""

    train: Literal["inception", "random_crop", "resize"] = Field(
        "inception", description="inception: area and aspect drawn; random_crop: resized larger, then cropped"
    )
    area: tuple[float, float] = Field((0.05, 1.0), description="inception: share of the image's area")
    aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="inception: width ÷ height")
    larger: float = Field(
        448 / 384, ge=1, description="random_crop and centre: resized to this × image_size first"
    )
    flip: bool = Field(True, description="mirror half of the samples")
    scaled_decode: bool = Field(
        True, description="train: decode a JPEG at 1/2, 1/4 or 1/8 where what is shown is that much too large"
    )
    rand_layers: int = Field(0, ge=0, description="operations of RandAugment on each sample; 0: none")
    rand_magnitude: float = Field(10, ge=0, le=20, description="of RandAugment, as big_vision counts it")
    mixup: float = Field(0, ge=0, description="parameter of the Beta distribution of shares; 0: no mixup")
    cutmix: float = Field(0, ge=0, description="the same for cutmix; with both, each pair gets one of them")
    evaluate: Literal["resize", "centre"] = Field(
        "resize", description="resize: to a square, as the paper's code"
    )


class OrderSettings(Settings):
    """Constants of the sample order, design 3.3. They are part of a run's identity."""

    lanes: int = Field(
        64, ge=1, description="runs of samples that a batch is drawn from; at most the samples"
    )
    window: int | None = Field(None, ge=1, description="places shuffled together in a lane; None: 16 chunks")

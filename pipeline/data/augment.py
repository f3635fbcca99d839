"""Decoded image → pixels of a sample, uint8.

Random choices come from (seed, purpose, epoch, sample id), never from an order of calls.
Sources: the inception crop is tf.image.sample_distorted_bounding_box (the height is drawn uniformly
given the aspect, so small crops are more frequent than in torchvision's); random_crop is BiT's;
resizing is bilinear and antialiased by torch on channels-last uint8, which is exact to half a level
against Pillow and about twice as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pipeline.config import AugmentSettings
from pipeline.data.decode import Decoded, Pixels, Wanted, whole
from pipeline.data.jpeg_part import Box
from pipeline.data.philox import uniforms
from pipeline.data.randaugment import DRAWS, rand_augment

_CROP_TRIES = 100
_SMALL = 96  # px; smaller images are decoded whole: to leave something out would cost more


@dataclass(frozen=True, slots=True)
class Draws:
    """The random numbers of n samples: four for the crop of each, one for its flip, four for each layer of
    RandAugment; all in [0, 1).

    Lists, because Python computes with its own floats several times faster than with NumPy's.
    """

    seed: int
    epoch: NDArray[np.int64]
    sample: NDArray[np.int64]
    crop: list[list[float]]
    flip: list[float]
    rand: list[list[float]]

    def more(self, row: int, attempt: int) -> list[float]:
        """Four numbers for the crop of one sample, others at each attempt."""
        if attempt == 0:
            return self.crop[row]
        one = slice(row, row + 1)
        block = uniforms(self.seed, "crop", self.epoch[one], self.sample[one], 4, first_block=attempt)
        numbers: list[float] = block[0].tolist()
        return numbers


def draw(settings: AugmentSettings, seed: int, epoch: NDArray[np.int64], sample: NDArray[np.int64]) -> Draws:
    return Draws(
        seed,
        epoch,
        sample,
        uniforms(seed, "crop", epoch, sample, 4).tolist(),
        uniforms(seed, "flip", epoch, sample, 1)[:, 0].tolist(),
        uniforms(seed, "rand", epoch, sample, DRAWS * settings.rand_layers).tolist(),
    )


def train_wanted(
    settings: AugmentSettings, shape: tuple[int, int], size: int, draws: Draws, row: int
) -> Wanted:
    """What decoding an image of `shape` (height, width) cannot leave out of a training sample: the box that
    is shown, at the largest of 1/8, 1/4, 1/2 and 1 that leaves at least `size` pixels of what is shown."""
    least = size if settings.train != "random_crop" else _larger(settings, size)
    may_scale = settings.scaled_decode and min(shape) >= 2 * least
    box = (0, 0, *shape)
    if settings.train == "inception" and (may_scale or min(shape) >= _SMALL):
        box = inception_box(settings, shape, draws, row)
    by = next(by for by in (8, 4, 2, 1) if by == 1 or (may_scale and min(box[2:]) >= by * least))
    return Wanted(by, box)


def train_pixels(settings: AugmentSettings, image: Decoded, size: int, draws: Draws, row: int) -> Pixels:
    """(size, size, 3) uint8 of a training sample.

    Args:
        image: decoded, perhaps only what `train_wanted` asks for.
        draws: of a batch; `row` is this sample's place in it.
    """
    shown = _TRAIN[settings.train](settings, image, size, draws, row)
    if settings.flip and draws.flip[row] < 0.5:
        shown = shown.flip(-1)
    if settings.rand_layers:
        return rand_augment(_pixels(shown), settings.rand_layers, settings.rand_magnitude, draws.rand[row])
    return _pixels(shown)


@dataclass(frozen=True, slots=True)
class TrainPixels:
    """Rows of one training batch, for whoever decodes them."""

    settings: AugmentSettings
    size: int
    draws: Draws

    def wanted(self, row: int, height: int, width: int) -> Wanted:
        return train_wanted(self.settings, (height, width), self.size, self.draws, row)

    def pixels(self, image: Decoded, row: int) -> Pixels:
        return train_pixels(self.settings, image, self.size, self.draws, row)


@dataclass(frozen=True, slots=True)
class EvaluationPixels:
    """Rows of evaluated samples, always decoded whole."""

    settings: AugmentSettings
    size: int

    def wanted(self, row: int, height: int, width: int) -> Wanted:
        return whole(height, width)

    def pixels(self, image: Decoded, row: int) -> Pixels:
        return evaluation_pixels(self.settings, image.pixels, self.size)


def evaluation_pixels(settings: AugmentSettings, pixels: Pixels, size: int | tuple[int, int]) -> Pixels:
    """(size, size, 3) or (*size, 3) uint8 of an evaluated sample: the whole resized, or its centre."""
    height, width = (size, size) if isinstance(size, int) else size
    if settings.evaluate == "centre":
        least = (_larger(settings, height), _larger(settings, width))
        rows, columns = pixels.shape[:2]
        scale = max(least[0] / rows, least[1] / columns)
        image = _resize(pixels, max(least[0], round(rows * scale)), max(least[1], round(columns * scale)))
        top, left = (image.shape[2] - height) // 2, (image.shape[3] - width) // 2
        image = image[:, :, top : top + height, left : left + width]
    else:
        image = _resize(pixels, height, width)
    return _pixels(image)


def _larger(settings: AugmentSettings, size: int) -> int:
    return max(size, round(settings.larger * size))


def _inception(settings: AugmentSettings, image: Decoded, size: int, draws: Draws, row: int) -> torch.Tensor:
    top, left, height, width = inception_box(settings, image.shape, draws, row)
    if image.by > 1:
        top, left, height, width = _scaled_box((top, left, height, width), image)
    return _resize(image.pixels, size, size, (top - image.top, left - image.left, height, width))


def _scaled_box(box: Box, image: Decoded) -> Box:
    """The same box in the scaled image, to the nearest pixel there: with the exact factor, because the
    scaled size is rounded up."""
    top, left, height, width = box
    rows, columns = (-(-side // image.by) for side in image.shape)
    first_row, first_column = round(top / image.by), round(left / image.by)
    return (
        first_row,
        first_column,
        min(round((top + height) / image.by), rows) - first_row,
        min(round((left + width) / image.by), columns) - first_column,
    )


def _random_crop(
    settings: AugmentSettings, image: Decoded, size: int, draws: Draws, row: int
) -> torch.Tensor:
    side = _larger(settings, size)
    top, left = (int(number * (side - size + 1)) for number in draws.crop[row][:2])
    return _resize(image.pixels, side, side)[:, :, top : top + size, left : left + size]


def _square(settings: AugmentSettings, image: Decoded, size: int, draws: Draws, row: int) -> torch.Tensor:
    return _resize(image.pixels, size, size)


_TRAIN: dict[str, Callable[[AugmentSettings, Decoded, int, Draws, int], torch.Tensor]] = {
    "inception": _inception,
    "random_crop": _random_crop,
    "resize": _square,
}


def inception_box(settings: AugmentSettings, shape: tuple[int, int], draws: Draws, row: int) -> Box:
    """The crop of one sample in an image of `shape` (height, width); the whole image if none fits.

    Follows GenerateRandomCrop in TensorFlow's sample_distorted_bounding_box_op.cc, but for its last
    row and column, which TensorFlow's crops never reach.
    """
    for attempt in range(_CROP_TRIES):
        random = draws.more(row, attempt)
        box = _try_box(settings, shape, random)
        if box is not None:
            return box
    return 0, 0, shape[0], shape[1]


def _try_box(settings: AugmentSettings, shape: tuple[int, int], random: list[float]) -> Box | None:
    full_height, full_width = shape
    low, high = settings.aspect
    aspect = low + (high - low) * random[0]
    smallest, largest = (share * full_height * full_width for share in settings.area)
    height = round((smallest / aspect) ** 0.5)
    limit = min(round((largest / aspect) ** 0.5), int((full_width + 0.499999) / aspect), full_height)
    height = min(height, limit)
    height += int(random[1] * (limit - height + 1))
    width = round(height * aspect)
    if height * width < smallest:  # rounding: try one row more
        height, width = height + 1, round((height + 1) * aspect)
    if height * width > largest:  # or one row less
        height, width = height - 1, round((height - 1) * aspect)
    if not smallest <= height * width <= largest or not (
        0 < height <= full_height and 0 < width <= full_width
    ):
        return None
    return (
        int(random[2] * (full_height - height + 1)),
        int(random[3] * (full_width - width + 1)),
        height,
        width,
    )


def _resize(pixels: Pixels, height: int, width: int, box: Box | None = None) -> torch.Tensor:
    """(1, 3, height, width) of the image, or of a box in it.

    The batch axis is made by NumPy's reshape, which gives it a stride of a whole image. From torch's
    own `[None]` it gets another one, for which torch takes the slower planar path (1.7 times at 224 px).
    """
    top, left, high, wide = box or (0, 0, *pixels.shape[:2])
    region = pixels.reshape(1, *pixels.shape)[:, top : top + high, left : left + wide]
    image = torch.from_numpy(region.transpose(0, 3, 1, 2))
    if (high, wide) == (height, width):
        return image
    return interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)


def _pixels(image: torch.Tensor) -> Pixels:
    """(H, W, 3) view of (1, 3, H, W)."""
    pixels: Pixels = image.numpy()[0].transpose(1, 2, 0)
    return pixels

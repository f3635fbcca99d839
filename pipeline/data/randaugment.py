"""RandAugment as the authors of ViT used it: big_vision, pp/archive/autoaugment.py.

Each layer applies one of 16 operations, with m = magnitude / 10. Posterize and solarize get weaker as the
magnitude rises, and magnitude 0 is not mild: so it is there too. One thing differs: contrast blends
with the mean level, not with the image's area ÷ 256, a fault whose repair was measured to change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

Pixels = NDArray[np.uint8]
Picture = Image.Image

DRAWS = 4  # numbers a layer needs: operation, sign, and two for the place of a cutout
_FILL = 128


def rand_augment(pixels: Pixels, layers: int, magnitude: float, random: Sequence[float]) -> Pixels:
    """(H, W, 3) after `layers` operations; `random` holds DRAWS numbers in [0, 1) for each."""
    image = Image.fromarray(pixels)
    for layer in range(layers):
        choice, sign, *place = random[DRAWS * layer : DRAWS * (layer + 1)]
        operation = OPERATIONS[int(choice * len(OPERATIONS))]
        image = operation(image, magnitude / 10, -1 if sign < 0.5 else 1, (place[0], place[1]))
    return np.asarray(image)


Operation = Callable[[Picture, float, int, tuple[float, float]], Picture]


def _enhance(kind: Callable[[Picture], ImageEnhance._Enhance]) -> Operation:
    return lambda image, m, sign, place: kind(image).enhance(0.1 + 1.8 * m)


def _move(image: Picture, matrix: tuple[float, ...]) -> Picture:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=(_FILL,) * 3
    )


def _rotate(image: Picture, m: float, sign: int, place: tuple[float, float]) -> Picture:
    return image.rotate(sign * 30 * m, Image.Resampling.NEAREST, fillcolor=(_FILL,) * 3)


def _posterize(image: Picture, m: float, sign: int, place: tuple[float, float]) -> Picture:
    lost = 8 - int(4 * m)
    return _by_level(image, [level >> lost << lost if lost > 0 else level for level in range(256)])


def _solarize(image: Picture, m: float, sign: int, place: tuple[float, float]) -> Picture:
    return _by_level(image, [level if level < int(256 * m) else 255 - level for level in range(256)])


def _solarize_add(image: Picture, m: float, sign: int, place: tuple[float, float]) -> Picture:
    return _by_level(
        image, [min(255, level + int(110 * m)) if level < 128 else level for level in range(256)]
    )


def _by_level(image: Picture, table: list[int]) -> Picture:
    return image.point(table * 3)


def _cutout(image: Picture, m: float, sign: int, place: tuple[float, float]) -> Picture:
    half, image = int(40 * m), image.copy()
    x, y = int(place[0] * image.width), int(place[1] * image.height)
    image.paste((_FILL,) * 3, (max(0, x - half), max(0, y - half), x + half, y + half))
    return image


OPERATIONS: tuple[Operation, ...] = (
    lambda image, m, sign, place: ImageOps.autocontrast(image),
    lambda image, m, sign, place: ImageOps.equalize(image),
    lambda image, m, sign, place: ImageOps.invert(image),
    _rotate,
    _posterize,
    _solarize,
    _enhance(ImageEnhance.Color),
    _enhance(ImageEnhance.Contrast),
    _enhance(ImageEnhance.Brightness),
    _enhance(ImageEnhance.Sharpness),
    lambda image, m, sign, place: _move(image, (1, sign * 0.3 * m, 0, 0, 1, 0)),
    lambda image, m, sign, place: _move(image, (1, 0, 0, sign * 0.3 * m, 1, 0)),
    lambda image, m, sign, place: _move(image, (1, 0, sign * 100 * m, 0, 1, 0)),
    lambda image, m, sign, place: _move(image, (1, 0, 0, 0, 1, sign * 100 * m)),
    _cutout,
    _solarize_add,
)

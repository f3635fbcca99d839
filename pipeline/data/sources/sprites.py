"""Scenes of simple shapes made on the spot, in the spirit of VTAB's structured group.

`count`: 1 to 6 shapes that do not touch; the class is how many. `orientation`: one arrow-like shape;
the class is which of 8 directions it points to, give or take 15°. A mirrored scene has another
orientation, so do not flip that one. Every item is drawn from (seed, split, number) alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.config import SpritesSource
from pipeline.data.philox import uniforms
from pipeline.data.sources.encode import jpeg
from pipeline.data.sources.source import Item, Source, SourceSplit

COUNTS = 6
DIRECTIONS = 8
_GRID = 3  # shapes sit in the cells of a 3 × 3 grid, so they never touch
_DRAWS = 3 + _GRID**2 + 8 * COUNTS  # colour of the ground; cells; what each shape is like
_FINER = 4  # drawn at 4 × the size, then averaged: smooth edges

F64 = NDArray[np.float64]
Colour = tuple[int, ...]


def open_sprites(settings: SpritesSource) -> Source:
    names = {
        "count": tuple(f"{number}_shapes" for number in range(1, COUNTS + 1)),
        "orientation": tuple(f"{360 * step // DIRECTIONS:03d}_degrees" for step in range(DIRECTIONS)),
    }[settings.label]
    splits: dict[str, SourceSplit] = {
        "train": _Sprites(settings, "train", settings.train),
        "test": _Sprites(settings, "test", settings.test),
    }
    return Source(names, splits)


class _Sprites(SourceSplit):
    """Item n is of class n modulo the number of classes."""

    def __init__(self, settings: SpritesSource, split: str, length: int) -> None:
        self._settings = settings
        self._split = split
        self._length = length

    def __len__(self) -> int:
        return self._length

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        count = self._settings.label == "count"
        draw, classes = (_draw_count, COUNTS) if count else (_draw_orientation, DIRECTIONS)
        random = uniforms(
            self._settings.seed, f"sprites/{self._settings.label}/{self._split}", 0, numbers, 72
        )
        for number, row in zip(numbers, random, strict=True):
            label = int(number) % classes
            pixels = _render(draw, label, row, self._settings.image_size)
            yield Item(jpeg(pixels), "jpg", label, f"{self._split}/{number:08d}")


def _render(draw: object, label: int, random: F64, size: int) -> NDArray[np.uint8]:
    assert callable(draw)
    wide = size * _FINER
    image = Image.new("RGB", (wide, wide), _colour(random[:3], 0, 90))
    draw(ImageDraw.Draw(image), label, random[3:], wide)
    return np.asarray(image.reduce(_FINER))


def _draw_count(canvas: ImageDraw.ImageDraw, label: int, random: F64, wide: int) -> None:
    cells = np.argsort(random[: _GRID**2])[: label + 1]
    cell = wide / _GRID
    rows = random[_GRID**2 : _GRID**2 + 8 * COUNTS].reshape(COUNTS, 8)
    for place, row in zip(cells, rows, strict=False):
        radius = cell * (0.24 + 0.18 * row[0])
        free = cell / 2 - radius
        x = (place % _GRID + 0.5) * cell + free * (2 * row[1] - 1)
        y = (place // _GRID + 0.5) * cell + free * (2 * row[2] - 1)
        corners = (0, 3, 4)[int(row[3] * 3)]
        _shape(canvas, (x, y), radius, corners, 2 * np.pi * row[4], _colour(row[5:8], 120, 255))


def _draw_orientation(canvas: ImageDraw.ImageDraw, label: int, random: F64, wide: int) -> None:
    step = 2 * np.pi / DIRECTIONS
    angle = label * step + (2 * random[0] - 1) * step / 3
    length = wide * (0.26 + 0.16 * random[1])
    x, y = wide / 2 + (wide / 2 - length) * (2 * random[2:4] - 1)
    width = 0.45 + 0.25 * random[4]
    outline = [(1.0, 0.0), (-0.8, width), (-0.45, 0.0), (-0.8, -width)]
    cos, sin = np.cos(angle), np.sin(angle)
    points = [(x + length * (a * cos - b * sin), y + length * (a * sin + b * cos)) for a, b in outline]
    canvas.polygon(points, fill=_colour(random[5:8], 120, 255))


def _shape(
    canvas: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    corners: int,
    angle: float,
    colour: Colour,
) -> None:
    """A regular polygon, or a disc when `corners` is 0, inside a circle of `radius`."""
    x, y = centre
    if corners == 0:
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
        return
    angles = angle + 2 * np.pi * np.arange(corners) / corners
    canvas.polygon([(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles], fill=colour)


def _colour(random: F64, low: int, high: int) -> Colour:
    return tuple(int(low + value * (high - low)) for value in random)

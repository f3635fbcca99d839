"""Drawings made on the spot: a class is a random arrangement of 1 to 4 quadratic strokes.

A sample moves the control points a little, turns, shears, scales and shifts the whole, and picks pen
width, softness and brightness. Light strokes on a dark ground, as handwritten digits are. Everything
is drawn from (seed, class) and (seed, split, number), so any item can be made alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.config import GlyphsSource
from pipeline.data.philox import normals, uniforms
from pipeline.data.sources.encode import jpeg
from pipeline.data.sources.source import Item, Source, SourceSplit

_STROKES = 4
_SEGMENTS = 7  # straight pieces a stroke is drawn with
_TOGETHER = 128  # samples drawn at once: their pixels stay in the cache

F32 = NDArray[np.float32]


def open_glyphs(settings: GlyphsSource) -> Source:
    """Source of `classes` × `train_per_class` and `test_per_class` drawings."""
    names = tuple(f"glyph{number:05d}" for number in range(settings.classes))
    splits: dict[str, SourceSplit] = {
        "train": _Glyphs(settings, "train", settings.train_per_class),
        "test": _Glyphs(settings, "test", settings.test_per_class),
    }
    return Source(names, splits)


class _Glyphs(SourceSplit):
    """Item n is of class n modulo `classes`."""

    def __init__(self, settings: GlyphsSource, split: str, per_class: int) -> None:
        self._settings = settings
        self._split = split
        self._length = settings.classes * per_class

    def __len__(self) -> int:
        return self._length

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        for start in range(0, len(numbers), _TOGETHER):
            part = numbers[start : start + _TOGETHER]
            labels = part % self._settings.classes
            for number, label, pixels in zip(part, labels, self._draw(part, labels), strict=True):
                yield Item(jpeg(pixels), "jpg", int(label), f"{self._split}/{number:08d}")

    def _draw(self, numbers: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        seed, size = self._settings.seed, self._settings.image_size
        random = uniforms(seed, f"glyphs/{self._split}", 0, numbers, 2 * 6 * _STROKES + 10)
        points, strokes = class_strokes(seed, labels)
        points = points + 0.055 * normals(random[:, : 12 * _STROKES]).reshape(points.shape)
        points = _distort(points, random[:, -10:])
        unit = size / 32
        width = unit * (1.8 + 3.2 * random[:, -1])
        softness = unit * (1.0 + 2.5 * random[:, -2])
        distance = _distances((points * 0.5 + 0.5) * (size - 1), strokes, size)
        ink = np.clip(0.5 + (width[:, None, None] / 2 - distance) / softness[:, None, None], 0, 1)
        brightness = 160 + 95 * random[:, -3]
        return np.asarray(np.rint(ink * brightness[:, None, None]), dtype=np.uint8)


def class_strokes(seed: int, labels: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Control points (n, 4, 3, 2), and the number of strokes (n,), of n classes; the picture is -1 to 1.

    Ends lie within 0.8; the middle point may lie farther out, which bends the stroke. Half of the strokes
    start where the one before ended, as a pen that stays down does.
    """
    random = uniforms(seed, "glyphs/class", 0, labels, 7 * _STROKES + 1)
    points = (random[:, : 6 * _STROKES].reshape(-1, _STROKES, 3, 2) - 0.5) * 1.6
    points[:, :, 1] *= 1.6
    joined = random[:, 6 * _STROKES : 7 * _STROKES] < 0.5
    for stroke in range(1, _STROKES):
        before = points[:, stroke - 1, 2]
        points[:, stroke, 0] = np.where(joined[:, stroke, None], before, points[:, stroke, 0])
    return points, 1 + np.floor(random[:, -1] * _STROKES).astype(np.int64)


def _distort(points: NDArray[np.float64], random: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn by up to 20°, shear by up to 0.3, scale by 0.75 to 1.15 in each axis, shift by up to 0.1."""
    signed = 2 * random - 1
    angle, shear = np.deg2rad(20) * signed[:, 0], 0.3 * signed[:, 1]
    wide, high = 0.95 + 0.2 * signed[:, 2], 0.95 + 0.2 * signed[:, 3]
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.empty((len(points), 2, 2))
    matrix[:, 0, 0], matrix[:, 0, 1] = wide * cos, wide * (shear * cos - sin)
    matrix[:, 1, 0], matrix[:, 1, 1] = high * sin, high * (shear * sin + cos)
    moved = np.einsum("nij,nskj->nski", matrix, points) + 0.1 * signed[:, None, None, 4:6]
    return np.asarray(moved)


def _distances(points: NDArray[np.float64], strokes: NDArray[np.int64], size: int) -> F32:
    """(n, size, size) distance of each pixel to the nearest stroke, px.

    Args:
        points: (n, 4, 3, 2) control points, px.
        strokes: (n,) how many of the four are drawn.
    """
    order = np.argsort(-strokes, kind="stable")  # so that stroke s is drawn for a prefix of the samples
    t = np.linspace(0, 1, _SEGMENTS + 1)[:, None]
    bezier = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    lines = np.einsum("tk,nskx->nstx", bezier, points[order]).astype(np.float32)
    y, x = np.mgrid[:size, :size].astype(np.float32).reshape(2, 1, -1)
    nearest = np.full((len(points), size * size), np.inf, dtype=np.float32)
    for stroke in range(_STROKES):
        some = int((strokes > stroke).sum())
        for segment in range(_SEGMENTS):
            start, end = lines[:some, stroke, segment], lines[:some, stroke, segment + 1]
            np.minimum(nearest[:some], _to_segment(x, y, start, end), out=nearest[:some])
    result = np.empty_like(nearest)
    result[order] = np.sqrt(nearest)
    return result.reshape(-1, size, size)


def _to_segment(x: F32, y: F32, start: F32, end: F32) -> F32:
    """(n, p) squared distance of p pixels to n segments from `start` to `end`, (n, 2) each."""
    along = end - start
    along = along / np.maximum((along * along).sum(1, keepdims=True), 1e-6)
    from_x, from_y = x - start[:, :1], y - start[:, 1:]
    t = from_x * along[:, :1]
    t += from_y * along[:, 1:]
    np.clip(t, 0, 1, out=t)
    direction = end - start
    from_x -= t * direction[:, :1]
    from_y -= t * direction[:, 1:]
    from_x *= from_x
    from_y *= from_y
    from_x += from_y
    return from_x

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.randaugment import DRAWS, OPERATIONS, rand_augment

PHOTO = np.array(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((64, 64))
)
NAMES = [
    "autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y", "cutout", "solarize_add",
]  # fmt: skip


def _apply(name: str, magnitude: float, pixels: np.ndarray = PHOTO, sign: float = 0.9) -> np.ndarray:
    choice = (NAMES.index(name) + 0.5) / 16
    return rand_augment(pixels, 1, magnitude, [choice, sign, 0.5, 0.5])


def test_there_are_sixteen_and_layers_follow_each_other() -> None:
    assert len(OPERATIONS) == len(NAMES) == 16
    twice = rand_augment(PHOTO, 2, 10, [(2 + 0.5) / 16, 0, 0, 0] * 2)
    assert np.array_equal(twice, PHOTO)
    assert DRAWS == 4


@pytest.mark.parametrize("name", NAMES)
def test_pixels_keep_shape_and_type(name: str) -> None:
    for magnitude in (0, 9, 15, 20):
        result = _apply(name, magnitude)
        assert result.shape == PHOTO.shape
        assert result.dtype == np.uint8


def test_levels() -> None:
    level = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    assert np.array_equal(_apply("invert", 3, level), 255 - level)
    assert np.array_equal(_apply("posterize", 10, level), level & 0xF0)
    assert _apply("posterize", 0, level).max() == 0
    assert np.array_equal(_apply("posterize", 20, level), level)
    assert np.array_equal(_apply("solarize", 5, level), np.where(level < 128, level, 255 - level))
    for magnitude in (10, 15):  # big_vision's threshold is above all levels
        assert np.array_equal(_apply("solarize", magnitude, level), level)
    expected = np.where(level < 128, np.minimum(255, level.astype(int) + 55), level)
    assert np.array_equal(_apply("solarize_add", 5, level), expected)
    assert np.array_equal(_apply("brightness", 5, level), level)


def test_moves_fill_with_grey_and_have_two_directions() -> None:
    white = np.full((300, 300, 3), 255, dtype=np.uint8)
    right, left = (_apply("translate_x", 10, white, sign) for sign in (0.1, 0.9))
    assert np.all(right[:, :100] == 128)
    assert np.all(right[:, 100:] == 255)
    assert np.array_equal(left, right[:, ::-1])
    down = _apply("translate_y", 10, white, 0.1)
    assert np.array_equal(down, right.transpose(1, 0, 2))
    assert (_apply("rotate", 10, white) == 128).any()
    assert (_apply("shear_x", 10, white) == 128).any()


def test_cutout_covers_a_square() -> None:
    white = np.full((300, 300, 3), 255, dtype=np.uint8)
    hidden = _apply("cutout", 10, white)[:, :, 0] == 128
    assert hidden.sum() == 80 * 80
    assert hidden[110:190, 110:190].all()


def test_strength_one_changes_nothing_for_blends() -> None:
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert np.array_equal(_apply(name, 5), PHOTO)  # factor 0.1 + 1.8 / 2 = 1
        assert not np.array_equal(_apply(name, 0), PHOTO)

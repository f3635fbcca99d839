from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from pipeline.config import AugmentSettings
from pipeline.data.augment import (
    EvaluationPixels,
    TrainPixels,
    draw,
    evaluation_pixels,
    inception_box,
    train_pixels,
)
from pipeline.data.decode import Decoded, Wanted, decode_part, whole

PHOTO = np.array(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 14, 3), dtype=np.uint8)).resize((280, 180))
)


def _draws(count: int = 1, epoch: int = 0, seed: int = 0):
    return draw(
        AugmentSettings(), seed, np.full(count, epoch, dtype=np.int64), np.arange(count, dtype=np.int64)
    )


def _whole(pixels: np.ndarray) -> Decoded:
    return Decoded(pixels, pixels.shape[:2], 1)


@pytest.mark.parametrize("kind", ["inception", "random_crop", "resize"])
def test_pixels_depend_on_seed_epoch_and_id_alone(kind: str) -> None:
    settings = AugmentSettings(train=kind)
    batch = _draws(40)
    for row in (0, 17, 39):
        alone = draw(settings, 0, np.array([0]), np.array([row]))
        first = train_pixels(settings, _whole(PHOTO), 32, batch, row)
        assert first.shape == (32, 32, 3)
        assert first.dtype == np.uint8
        assert np.array_equal(first, train_pixels(settings, _whole(PHOTO), 32, alone, 0))
    others = [
        train_pixels(settings, _whole(PHOTO), 32, _draws(40, epoch, seed), 17)
        for epoch, seed in ((0, 0), (1, 0), (0, 1))
    ]
    if kind != "resize":
        assert not np.array_equal(others[0], others[1])
        assert not np.array_equal(others[0], others[2])


def test_resizing_is_that_of_pillow() -> None:
    ours = evaluation_pixels(AugmentSettings(), PHOTO, 64).astype(int)
    theirs = np.asarray(Image.fromarray(PHOTO).resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert abs(ours - theirs).max() <= 1


def test_an_image_of_the_right_size_is_unchanged() -> None:
    square = np.ascontiguousarray(PHOTO[:64, :64])
    settings = AugmentSettings(train="resize", flip=False)
    assert np.array_equal(train_pixels(settings, _whole(square), 64, _draws(), 0), square)
    assert np.array_equal(evaluation_pixels(settings, square, 64), square)


def test_flip_mirrors_about_half() -> None:
    square = np.ascontiguousarray(PHOTO[:64, :64])
    settings, draws = AugmentSettings(train="resize"), _draws(400)
    flipped = 0
    for row in range(400):
        pixels = train_pixels(settings, _whole(square), 64, draws, row)
        assert np.array_equal(pixels, square) or np.array_equal(pixels, square[:, ::-1])
        flipped += not np.array_equal(pixels, square)
    assert 160 < flipped < 240


def test_random_crop_reaches_every_corner() -> None:
    settings, draws = AugmentSettings(train="random_crop", larger=1.1, flip=False), _draws(400)
    big = evaluation_pixels(settings, PHOTO, 33)
    corners = {(top, left): big[top : top + 30, left : left + 30] for top in (0, 3) for left in (0, 3)}
    seen = set()
    for row in range(400):
        pixels = train_pixels(settings, _whole(PHOTO), 30, draws, row)
        seen |= {corner for corner, expected in corners.items() if np.array_equal(pixels, expected)}
    assert len(seen) == 4


def test_centre_crop() -> None:
    settings = AugmentSettings(evaluate="centre", larger=1.25)
    ours = evaluation_pixels(settings, PHOTO, 80).astype(int)
    resized = Image.fromarray(PHOTO).resize((156, 100), Image.Resampling.BILINEAR)
    assert abs(ours - np.asarray(resized).astype(int)[10:90, 38:118]).max() <= 1


def test_inception_boxes_have_the_distribution_of_tensorflow() -> None:
    settings, shape = AugmentSettings(), (375, 500)
    draws = _draws(3000)
    boxes = np.array([inception_box(settings, shape, draws, row) for row in range(3000)])
    top, left, height, width = boxes.T
    area, aspect = height * width / (375 * 500), width / height
    assert area.min() >= 0.05
    assert area.max() <= 1.0
    assert aspect.min() > 0.72
    assert aspect.max() < 1.36
    assert top.min() == left.min() == 0
    assert (top + height).max() == 375
    assert (left + width).max() == 500
    # The aspect is uniform, and the height is uniform between its limits for that aspect.
    assert stats.kstest(aspect, "uniform", (0.75, 4 / 3 - 0.75)).pvalue > 0.001
    low, high = np.sqrt(0.05 * 375 * 500 / aspect), np.minimum(375, 500 / aspect)
    assert stats.kstest((height - low) / (high - low), "uniform").pvalue > 0.001


def test_tries_are_independent_and_end_with_the_whole_image() -> None:
    tall = AugmentSettings(area=(0.8, 1.0))
    draws = _draws(300)
    # Four tries of five fail here; with new numbers at each, all 300 samples find a box in time.
    boxes = [inception_box(tall, (40, 60), draws, row) for row in range(300)]
    assert all(0.8 * 2400 <= height * width < 2400 for _, _, height, width in boxes)
    assert len(set(boxes)) > 10
    assert inception_box(AugmentSettings(area=(0.9, 1.0)), (10, 100), draws, 0) == (0, 0, 10, 100)
    for shape in ((1, 1), (1, 50), (50, 1), (2, 3)):
        top, left, height, width = inception_box(AugmentSettings(), shape, draws, 0)
        assert 0 < height <= shape[0] - top
        assert 0 < width <= shape[1] - left


def _large_jpeg(height: int = 803, width: int = 1207, **options: int) -> bytes:
    coarse = np.random.default_rng(1).integers(0, 256, (height // 64, width // 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=92, **options
    )
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["inception", "random_crop", "resize"])
def test_a_scaled_decode_shows_the_same(kind: str) -> None:
    data, draws, size = _large_jpeg(), _draws(60), 100
    scaled = TrainPixels(AugmentSettings(train=kind), size, draws)
    unscaled = TrainPixels(AugmentSettings(train=kind, scaled_decode=False), size, draws)
    used = set()
    for row in range(60):
        ours, exact = (decode_part(data, partial(rows.wanted, row)) for rows in (scaled, unscaled))
        assert exact.by == 1
        assert ours.shape == (803, 1207)
        assert ours.top + ours.pixels.shape[0] <= -(-803 // ours.by)
        assert ours.left + ours.pixels.shape[1] <= -(-1207 // ours.by)
        used.add(ours.by)
        difference = np.abs(scaled.pixels(ours, row).astype(int) - unscaled.pixels(exact, row))
        # Rounded to the scaled grid, a crop's edges move by at most half a pixel of the result. Another crop
        # differs by about 60.
        assert difference.mean() < 9, f"row {row}, 1/{ours.by}"
    assert used == {"inception": {2, 4}, "random_crop": {4}, "resize": {8}}[kind]


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 1}], ids=["", "restarts"])
def test_what_is_left_out_changes_no_pixel(options: dict[str, int]) -> None:
    data, draws = _large_jpeg(**options), _draws(60)
    rows = TrainPixels(AugmentSettings(scaled_decode=False), 100, draws)
    all_rows = decode_part(data, whole)
    kept = []
    for row in range(60):
        part = decode_part(data, partial(rows.wanted, row))
        kept.append(part.pixels.size / all_rows.pixels.size)
        assert np.array_equal(rows.pixels(part, row), rows.pixels(all_rows, row))
    assert np.mean(kept) < (0.5 if options else 0.9)


def test_what_is_decoded_never_holds_less_than_is_shown() -> None:
    settings, draws, size = AugmentSettings(), _draws(500), 48
    rows = TrainPixels(settings, size, draws)
    for row in range(500):
        by, box = rows.wanted(row, 803, 1207)
        assert box == inception_box(settings, (803, 1207), draws, row)
        *_, height, width = box
        assert by == 1 or min(height, width) >= by * size
        assert by == 8 or min(height, width) < 2 * by * size


def test_evaluated_images_are_decoded_whole() -> None:
    assert EvaluationPixels(AugmentSettings(), 32).wanted(0, 803, 1207) == Wanted(1, (0, 0, 803, 1207))

"""Sources that need no files: glyphs, sprites, digits."""

from __future__ import annotations

import time

import numpy as np
import pytest

from pipeline.config import DigitsSource, GlyphsSource, SpritesSource
from pipeline.data.decode import decode
from pipeline.data.sources.catalog import open_source

SETTINGS = [
    GlyphsSource(source="glyphs", classes=7, train_per_class=6, test_per_class=3),
    SpritesSource(source="sprites", label="count", train=30, test=12),
    SpritesSource(source="sprites", label="orientation", train=30, test=16, image_size=48),
    DigitsSource(source="digits", image_size=40),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"{s.source}-{getattr(s, 'label', '')}")
def test_items_can_be_made_in_any_order(settings) -> None:
    source = open_source(settings)
    for split in source.splits.values():
        whole = list(split.items(np.arange(len(split))))
        some = np.array([5, 2, len(split) - 1])
        assert [whole[n] for n in some] == list(split.items(some))
        assert len({item.key for item in whole}) == len(split)
        assert {item.label for item in whole} == set(range(len(source.classes)))
        pixels = decode(whole[0].data)
        assert isinstance(pixels, np.ndarray)
        assert pixels.shape == (settings.image_size, settings.image_size, 3)


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=lambda s: f"{s.source}-{getattr(s, 'label', '')}")
def test_splits_and_seeds_draw_different_images(settings) -> None:
    other = open_source(settings.model_copy(update={"seed": 1}))
    source = open_source(settings)
    numbers = np.arange(12)
    images = [
        item.data
        for split in (*source.splits.values(), *other.splits.values())
        for item in split.items(numbers)
    ]
    assert len(set(images)) == 48


def test_digits_are_cut_once_and_evenly() -> None:
    source = open_source(DigitsSource(source="digits"))
    train, test = (list(split.items(np.arange(len(split)))) for split in source.splits.values())
    assert len(train) + len(test) == 1797
    assert not {item.key for item in train} & {item.key for item in test}
    share = np.bincount([i.label for i in test]) / np.bincount([i.label for i in train + test])
    assert abs(share - 1 / 3).max() < 0.01


def _grey(source, split: str, number: int) -> np.ndarray:
    (item,) = source.splits[split].items(np.array([number]))
    pixels = decode(item.data)
    assert isinstance(pixels, np.ndarray)
    return pixels[:, :, 0].astype(float)


def test_glyphs_of_a_class_look_alike() -> None:
    source = open_source(
        GlyphsSource(source="glyphs", classes=20, train_per_class=20, test_per_class=5, image_size=16)
    )
    means = np.stack(
        [np.mean([_grey(source, "train", c + 20 * n) for n in range(20)], axis=0) for c in range(20)]
    )
    right = 0
    for number in range(100):
        test = _grey(source, "test", number)
        right += int(np.argmin(((means - test) ** 2).sum((1, 2)))) == number % 20
    assert right > 40  # guessing gives 5


def test_sprites_show_as_many_shapes_as_they_say() -> None:
    from scipy.ndimage import label

    source = open_source(SpritesSource(source="sprites", label="count", train=60, test=1, image_size=64))
    for item in source.splits["train"].items(np.arange(60)):
        pixels = decode(item.data)
        assert isinstance(pixels, np.ndarray)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        _, found = label(np.abs(pixels.astype(int) - ground).max(axis=2) > 40)
        assert found == item.label + 1


def test_twenty_thousand_glyphs_are_drawn_within_ten_seconds() -> None:
    source = open_source(GlyphsSource(source="glyphs"))
    start = time.process_time()
    drawn = sum(1 for _ in source.splits["train"].items(np.arange(4000)))
    assert drawn == 4000
    assert time.process_time() - start < 10 * 4000 / 20_000

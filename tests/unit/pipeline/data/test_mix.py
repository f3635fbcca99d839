from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.config import AugmentSettings, DataView, OrderSettings, WebdatasetSource
from pipeline.data.assemble import Batch
from pipeline.data.loader import TrainLoader
from pipeline.data.mix import draw_pairs, mix_pixels, mix_targets
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare
from pipeline.errors import ConfigError

from .conftest import samples


def _pairs(size: int = 32, count: int = 4000, **settings: float):
    ids = np.arange(count, dtype=np.int64)
    pairs = draw_pairs(AugmentSettings(**settings), 0, np.zeros(count, dtype=np.int64), ids, size)
    assert pairs is not None
    return pairs


def test_shares_are_the_larger_part_of_a_beta_draw() -> None:
    share = _pairs(mixup=0.4).share
    assert share.min() >= 0.5
    assert share.max() <= 1
    folded = lambda x: stats.beta.cdf(x, 0.4, 0.4) - stats.beta.cdf(1 - x, 0.4, 0.4)  # noqa: E731
    assert stats.kstest(share, folded).pvalue > 0.001


def test_with_both_each_pair_gets_one() -> None:
    pairs = _pairs(mixup=0.2, cutmix=1.0)
    cut = pairs.box[:, 2] > 0
    assert 0.4 < cut.mean() < 0.5  # some boxes are empty
    top, left, height, width = pairs.box[cut].T
    assert (top + height).max() == 32
    assert (left + width).max() == 32
    assert np.allclose(pairs.share[cut], 1 - height * width / 32**2)


def test_mixup_of_pixels_and_targets() -> None:
    pixels = np.stack([np.full((4, 4, 3), level, dtype=np.uint8) for level in (0, 0, 10, 250)])
    pairs = _pairs(size=4, count=4, mixup=1.0)
    pairs.share[:] = [1.0, 0.75]
    mix_pixels(pixels, 2, pairs)
    assert pixels[:, 0, 0, 0].tolist() == [0, 0, 70, 190]
    targets = np.eye(4, dtype=np.float32)
    mixed = mix_targets(targets, np.array([True] * 4), pairs)
    assert mixed.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0.75, 0.25], [0, 0, 0.25, 0.75]]
    assert np.array_equal(mix_targets(targets, np.array([True, True, True, False]), pairs), targets)


def test_cutmix_exchanges_a_box() -> None:
    pixels = np.stack([np.full((6, 6, 3), level, dtype=np.uint8) for level in (1, 2)])
    pairs = _pairs(size=6, count=2, cutmix=1.0)
    pairs.box[0], pairs.share[0] = (1, 2, 3, 3), 0.75
    mix_pixels(pixels, 0, pairs)
    assert (pixels[0] == 2).sum() == (pixels[1] == 1).sum() == 27
    assert np.all(pixels[0, 1:4, 2:5] == 2)


def test_nothing_to_mix_and_odd_parts() -> None:
    ids = np.arange(3, dtype=np.int64)
    assert draw_pairs(AugmentSettings(), 0, ids, ids, 8) is None
    with pytest.raises(ConfigError, match="3 samples of a batch on each rank"):
        draw_pairs(AugmentSettings(mixup=1), 0, ids, ids, 8)


def _batches(
    view: View, settings: AugmentSettings, world: int, threads: int
) -> list[tuple[torch.Tensor, ...]]:
    parts = []
    for rank in range(world):
        with TrainLoader(
            view, batch=40, image_size=24, augment=settings, order=OrderSettings(lanes=6, window=9), seed=5,
            threads=threads, bad_samples=0.001, rank=rank, world=world, steps=5,
        ) as loader:  # fmt: skip
            parts.append([(batch.images, batch.labels, batch.ids) for batch in loader])
    return [
        tuple(torch.cat(tensors) for tensors in zip(*ranks, strict=True))
        for ranks in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.5, "cutmix": 1.0}, {"rand_layers": 2, "rand_magnitude": 15}]
)
def test_partners_and_pixels_do_not_depend_on_ranks_and_threads(train_view: View, settings: dict) -> None:
    augment = AugmentSettings(**settings)
    one = _batches(train_view, augment, 1, 1)
    for world, threads in ((2, 1), (4, 3), (10, 1)):
        for expected, found in zip(one, _batches(train_view, augment, world, threads), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    images, labels, _ = one[0]
    plain = _batches(train_view, AugmentSettings(), 1, 1)[0][0]
    assert (images != plain).flatten(1).any(dim=1).sum() > 20
    if "mixup" in settings:
        assert labels.shape == (40, 13)
        assert torch.allclose(labels.sum(dim=1), torch.ones(40))
        assert ((labels > 0).sum(dim=1) == 2).any()


def test_the_partner_of_a_bad_sample_stays_as_it_is(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    content = samples(16)
    content[6] = ("0003.jpg", b"no image")
    path = write_tar("x.tar", content)
    prepare(WebdatasetSource(source="webdataset", train=str(path), test=str(path)), tmp_path / "out")
    view = open_view(DataView(path="out", split="train"), tmp_path)

    def first(**mix: float) -> Batch:
        with TrainLoader(
            view, batch=16, image_size=16, augment=AugmentSettings(**mix), order=OrderSettings(), seed=0,
            threads=1, bad_samples=0.1, rank=0, world=1, steps=1,
        ) as loader:  # fmt: skip
            return next(loader)

    plain, mixed = first(), first(mixup=5.0)
    bad = int((plain.ids == 3).nonzero())
    changed = (plain.images != mixed.images).flatten(1).any(dim=1).nonzero()[:, 0].tolist()
    assert changed == [row for row in range(16) if row // 2 != bad // 2]
    assert mixed.labels[bad ^ 1].max() == 1
    assert mixed.weights.sum() == 15

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from webdataset import TarWriter

from pipeline.config import (
    AugmentSettings,
    DataMixture,
    DataView,
    DigitsSource,
    GlyphsSource,
    OrderSettings,
    SpritesSource,
    WebdatasetSource,
    WriteSettings,
)
from pipeline.data.assemble import Batch
from pipeline.data.describe import describe_batch
from pipeline.data.loader import TrainLoader
from pipeline.data.mixture import CYCLE, AnyView, MixedView, Strides, open_data
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import UserError

from .conftest import image_bytes

ORDER = OrderSettings(lanes=6, window=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(0, 10**9))
def test_own_positions_follow_each_other(weights: list[float], start: int) -> None:
    """Over any stretch a dataset's own positions have no gap, and its share stays near its weight."""
    strides = Strides(weights)
    assert strides.counts.sum() == CYCLE
    dataset, own = strides.split(np.arange(start, start + 1000, dtype=np.int64))
    for number, weight in enumerate(weights):
        mine = own[dataset == number]
        assert np.all(np.diff(mine) == 1)
        assert abs(len(mine) - 1000 * weight / sum(weights)) <= 2 + len(weights) / 2


def test_the_schedule_is_even_within_a_few_positions() -> None:
    dataset, _ = Strides([3, 1]).split(np.arange(400, dtype=np.int64))
    assert {int(dataset[n : n + 4].sum()) for n in range(0, 400, 4)} == {1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mixture")
    write = WriteSettings(shard_samples=20, chunk_bytes=10_000)
    glyphs = GlyphsSource(source="glyphs", classes=4, train_per_class=15, test_per_class=1, write=write)
    prepare(glyphs, directory / "a")
    prepare(SpritesSource(source="sprites", label="count", train=30, test=1, write=write), directory / "b")
    return directory


def _open(root: Path, weights: tuple[float, ...] = (2, 1)) -> MixedView:
    parts = tuple(DataView(path=name, split="train") for name in ("a", "b"))
    view = open_data(DataMixture(parts=parts, weights=weights), root)
    assert isinstance(view, MixedView)
    return view


def _train(root: Path, world: int = 1, threads: int = 1, first: int = 0, **augment: float) -> list[Batch]:
    parts = []
    for rank in range(world):
        with TrainLoader(
            _open(root), batch=24, image_size=16, augment=AugmentSettings(**augment), order=ORDER, seed=1,
            threads=threads, bad_samples=0, rank=rank, world=world, first_step=first, steps=15,
        ) as loader:  # fmt: skip
            parts.append(list(loader))
    names = ("images", "labels", "weights", "ids")
    return [
        Batch(step[0].step, *(torch.cat([getattr(batch, name) for batch in step]) for name in names))
        for step in zip(*parts, strict=True)
    ]


def test_shares_epochs_and_labels(root: Path) -> None:
    view, batches = _open(root), _train(root)
    a, b = (open_view(DataView(path=name, split="train"), root) for name in ("a", "b"))
    assert view.classes == a.classes + b.classes
    ids = torch.cat([batch.ids for batch in batches]).numpy()
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    assert [int((batch.ids < 60).sum()) for batch in batches] == [16] * 15
    assert np.bincount(ids[ids < 60]).tolist() == [4] * 60  # 240 positions: four epochs
    assert np.bincount(ids[ids >= 60] - 60).tolist() == [4] * 30  # 120 positions: four epochs
    expected = np.concatenate([a.labels(), b.labels() + 4])
    assert np.array_equal(labels, expected[ids])
    assert np.array_equal(view.labels(), expected)
    assert view.key(75) == b.key(15)


@pytest.mark.parametrize("augment", [{}, {"mixup": 1.0}])
def test_batches_do_not_depend_on_ranks_threads_and_restarts(root: Path, augment: dict[str, float]) -> None:
    whole = _train(root, **augment)
    for world, threads, first in ((2, 1, 0), (3 if not augment else 4, 2, 0), (1, 1, 7)):
        for expected, found in zip(
            whole[first:], _train(root, world, threads, first, **augment), strict=True
        ):
            assert expected.step == found.step
            for name in ("images", "labels", "weights", "ids"):
                assert torch.equal(getattr(expected, name), getattr(found, name))


def test_described_batches_are_those_that_are_read(root: Path) -> None:
    lines = describe_batch(_open(root), ORDER, seed=1, batch=24, step=5, ranks=2)
    assert [line["id"] for line in lines] == _train(root)[5].ids.tolist()
    assert {line["shard"].split("/")[0] for line in lines} == {"train"}


def test_weights_are_part_of_the_fingerprint(root: Path) -> None:
    assert _open(root).fingerprint == _open(root).fingerprint
    assert _open(root).fingerprint != _open(root, (1, 1)).fingerprint
    with pytest.raises(ValidationError, match="1 weights for 2 parts"):
        _open(root, (1,))


def test_classes_without_names_are_mixed_only_if_there_are_as_many(root: Path) -> None:
    for name, classes in (("three", 3), ("two", 2)):
        tar = root / f"{name}.tar"
        with TarWriter(str(tar), mtime=0) as out:
            for n in range(6):
                out.write({"__key__": str(n), "jpg": image_bytes(seed=n), "cls": str(n % classes).encode()})
        prepare(WebdatasetSource(source="webdataset", train=str(tar), test=str(tar)), root / name)

    def mixed(*names: str) -> AnyView:
        parts = tuple(DataView(path=name, split="train") for name in names)
        return open_data(DataMixture(parts=parts, weights=(1.0,) * len(parts)), root)

    with pytest.raises(UserError, match="bare numbers \\(3 in three and 2 in two\\)"):
        mixed("three", "a", "two")
    assert mixed("three", "three").num_classes == 3
    assert mixed("three", "a").num_classes == 7


def test_equal_class_names_are_one_class(root: Path) -> None:
    settings = DigitsSource(source="digits", image_size=16)
    prepare(settings, root / "digits")
    part = DataView(path="digits", split="train")
    view = open_data(DataMixture(parts=(part, part), weights=(1, 1)), root)
    assert view.num_classes == 10
    assert np.array_equal(view.labels()[:1198], view.labels()[1198:])

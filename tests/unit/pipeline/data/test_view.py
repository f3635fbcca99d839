from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataView
from pipeline.data.view import View, held_out, open_view, subset
from pipeline.errors import DataError, UserError

label_lists = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(lambda x: np.array(x, dtype=np.int64))


@settings(max_examples=100, deadline=None)
@given(label_lists, st.integers(0, 99), st.data())
def test_a_subset_is_even_over_classes(labels: np.ndarray, seed: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(labels)))
    chosen = subset(labels, count, seed, "f")
    assert len(np.unique(chosen)) == count
    assert np.array_equal(chosen, np.sort(chosen))
    have, got = np.bincount(labels), np.bincount(labels[chosen], minlength=labels.max() + 1)
    assert all(n == h or n >= got.max() - 1 for n, h in zip(got, have, strict=True))


@settings(max_examples=100, deadline=None)
@given(label_lists, st.integers(0, 99), st.floats(0.01, 0.99))
def test_held_out_takes_the_same_share_of_each_class(labels: np.ndarray, seed: int, share: float) -> None:
    held = held_out(labels, share, seed, "f")
    assert held.sum() == round(share * len(labels))
    for label in np.unique(labels):
        count = (labels == label).sum()
        assert abs(held[labels == label].sum() - share * count) <= 2


def test_large_and_small_classes_give_the_same_share() -> None:
    labels = np.repeat([0, 1, 2], [500, 50, 10])
    assert np.bincount(labels[held_out(labels, 0.2, 0, "f")]).tolist() == [100, 10, 2]


def test_draws_depend_on_seed_and_fingerprint() -> None:
    labels = np.repeat(np.arange(5), 40)
    first = subset(labels, 50, 0, "f")
    assert np.array_equal(first, subset(labels, 50, 0, "f"))
    assert not np.array_equal(first, subset(labels, 50, 1, "f"))
    assert not np.array_equal(first, subset(labels, 50, 0, "g"))


def test_all_samples(train_view: View) -> None:
    assert (train_view.samples, train_view.num_classes, train_view.ids) == (130, 13, None)
    assert np.bincount(train_view.labels()).tolist() == [10] * 13
    assert train_view.key(5).startswith("train/")
    assert len({train_view.key(n) for n in range(130)}) == 130


def test_kept_and_held_out_cover_the_subset(glyphs: Path) -> None:
    def open_part(part: str, samples: int | None = 65) -> View:
        view = DataView(path=".", split="train", samples=samples, held_out=0.2, part=part, seed=3)
        return open_view(view, glyphs)

    kept, held, whole = open_part("kept"), open_part("held_out"), open_part("all")
    assert np.array_equal(np.sort(np.concatenate([kept.ids, held.ids])), whole.ids)
    assert np.bincount(whole.labels()).tolist() == [5] * 13
    assert np.bincount(held.labels()).tolist() == [1] * 13
    assert (
        len({kept.fingerprint, held.fingerprint, whole.fingerprint, open_part("kept", None).fingerprint}) == 4
    )
    assert open_part("kept").fingerprint == kept.fingerprint
    assert np.array_equal(kept.sample_id(np.array([2, 0])), kept.ids[[2, 0]])


def test_impossible_views(glyphs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="131 samples asked for, 130 in split 'train'"):
        open_view(DataView(path=".", split="train", samples=131), glyphs)
    with pytest.raises(UserError, match=r"0\.001 of 130 samples leaves one part empty"):
        open_view(DataView(path=".", split="train", held_out=0.001, part="held_out"), glyphs)
    with pytest.raises(DataError, match="no manifest"):
        open_view(DataView(path="nowhere", split="train"), tmp_path)

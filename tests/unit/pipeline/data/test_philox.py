from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.data.philox import normals, permutation, philox, stream_key, uniforms


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ([0] * 4, 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            0x299F31D0_A4093822,
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: int, expected: list[int]) -> None:
    """The vectors that the authors publish with Random123 (kat_vectors, philox4x32 10)."""
    assert philox(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0].tolist() == expected


def test_a_draw_depends_on_what_it_is_for_alone() -> None:
    ids = np.arange(50, dtype=np.int64)
    all_at_once = uniforms(3, "crop", 7, ids, 9)
    assert np.array_equal(all_at_once[20:21], uniforms(3, "crop", 7, ids[20:21], 9))
    assert np.array_equal(all_at_once[:, 4:8], uniforms(3, "crop", 7, ids, 4, first_block=1))
    for other in (
        uniforms(4, "crop", 7, ids, 9),
        uniforms(3, "flip", 7, ids, 9),
        uniforms(3, "crop", 8, ids, 9),
    ):
        assert not np.isin(other, all_at_once).any()


def test_large_ids_differ_from_small_ones() -> None:
    ids = np.array([1, 1 + 2**32, 1 + 2**40], dtype=np.int64)
    assert len(np.unique(uniforms(0, "crop", 0, ids, 1))) == 3


def test_distributions() -> None:
    random = uniforms(0, "test", 0, np.arange(4000, dtype=np.int64), 8)
    assert stats.kstest(random.ravel(), "uniform").pvalue > 0.001
    assert stats.kstest(normals(random).ravel(), "norm").pvalue > 0.001


def test_permutation_is_one_and_stays_the_same() -> None:
    for size in (0, 1, 2, 3, 1000):
        assert sorted(permutation(1, "x", 0, size).tolist()) == list(range(size))
    # Written down once: another order would be another dataset and another run for the same seed.
    assert permutation(1, "x", 0, 8).tolist() == [1, 3, 0, 7, 6, 5, 2, 4]
    assert permutation(1, "x", 0, 100).tolist() != permutation(1, "x", 1, 100).tolist()


def test_stream_key_is_the_same_on_every_machine() -> None:
    assert stream_key(0, "order/window") == 6315621107093809537

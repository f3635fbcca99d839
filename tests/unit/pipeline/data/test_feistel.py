from __future__ import annotations

import numpy as np
from scipy import stats

from pipeline.data.feistel import combine, permute


def _permuted(size: int, key: int) -> np.ndarray:
    place = np.arange(size, dtype=np.int64)
    return permute(place, np.full(size, size), combine(np.full(size, key, dtype=np.uint64)))


def test_every_size_is_permuted() -> None:
    for size in [*range(1, 130), 255, 256, 257, 1000, 4099]:
        assert np.array_equal(np.sort(_permuted(size, 5)), np.arange(size)), size


def test_one_call_for_many_windows_equals_one_call_each() -> None:
    sizes, keys = [7, 1, 300, 64], [1, 2, 3, 4]
    place = np.concatenate([np.arange(n, dtype=np.int64) for n in sizes])
    key = combine(np.repeat(np.array(keys, dtype=np.uint64), sizes))
    together = permute(place, np.repeat(sizes, sizes), key)
    each = [_permuted(size, key) for size, key in zip(sizes, keys, strict=True)]
    assert np.array_equal(together, np.concatenate(each))


def test_places_are_uniform_and_neighbours_unrelated() -> None:
    size, keys = 12, 6000
    place = np.tile(np.arange(size, dtype=np.int64), keys)
    key = combine(np.repeat(np.arange(keys, dtype=np.uint64), size))
    result = permute(place, np.full(len(place), size), key).reshape(keys, size)
    for first, second in ((0, None), (7, None), (0, 1), (3, 9)):
        value = result[:, first] if second is None else result[:, first] * size + result[:, second]
        counts = np.bincount(value, minlength=size if second is None else size * size)
        if second is not None:
            counts = np.delete(counts, np.arange(size) * (size + 1))  # two places never meet
        assert stats.chisquare(counts).pvalue > 1e-4, (first, second)


def test_combine_takes_order_and_every_part_into_account() -> None:
    keys = {int(combine(*parts)) for parts in ((1, 2, 3), (2, 1, 3), (1, 3, 2), (1, 2), (1, 2, 0), (0, 1, 2))}
    assert len(keys) == 6

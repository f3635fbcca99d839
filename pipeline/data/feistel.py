"""Permutations of any size without a table: place → place, for many keys and sizes at once.

A place x of a window with n places is written as (left, right) in a rectangle of a × b ≥ n cells with
a ≈ b ≈ √n. Each round adds to one half a hash of the other, which can be undone, so the rounds
permute the rectangle. A result outside the n places is sent through again until it is inside
("cycle walking"); the rectangle has at most about √n cells too many, so this is rare.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Pairs of places of a window of 12 are visibly dependent after 4 rounds (chi-square over 20,000 keys),
# not after 10, which cost about 100 ns a place.
ROUNDS = 10

_ADD = np.uint64(0x9E3779B97F4A7C15)
_MUL1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL2 = np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = (np.uint64(n) for n in (30, 27, 31, 32))

U64 = NDArray[np.uint64]


def mix(value: U64) -> U64:
    """The finalizer of SplitMix64: every bit of the result depends on every bit of `value`."""
    value = (value ^ (value >> _30)) * _MUL1
    value = (value ^ (value >> _27)) * _MUL2
    return value ^ (value >> _31)


def combine(*parts: U64 | int) -> U64:
    """One key from several numbers, in order; arrays are broadcast."""
    with np.errstate(over="ignore"):
        key = np.zeros((), dtype=np.uint64)
        for part in parts:
            key = mix((key + _ADD) ^ np.asarray(part, dtype=np.uint64) * _MUL2)
    return key


def permute(place: NDArray[np.int64], size: NDArray[np.int64], key: U64) -> NDArray[np.int64]:
    """(n,) places after permutation.

    Args:
        place: (n,) from 0 to size-1.
        size: (n,) places in the window that each belongs to, from 1 to 2^32.
        key: (n,) of the window: equal keys and sizes give one permutation.
    """
    wide_size = size.astype(np.uint64)
    rows = np.ceil(np.sqrt(size.astype(np.float64))).astype(np.uint64)
    columns = (wide_size + rows - np.uint64(1)) // rows
    result = _rounds(place.astype(np.uint64), rows, columns, key)
    outside = np.flatnonzero(result >= wide_size)
    while len(outside):
        result[outside] = _rounds(result[outside], rows[outside], columns[outside], key[outside])
        outside = outside[result[outside] >= wide_size[outside]]
    return result.view(np.int64)


def _rounds(place: U64, rows: U64, columns: U64, key: U64) -> U64:
    left, right = place // columns, place % columns
    with np.errstate(over="ignore"):
        for number in range(0, ROUNDS, 2):
            left = _add(left, _hash(right, key, number), rows)
            right = _add(right, _hash(left, key, number + 1), columns)
    return left * columns + right


def _hash(half: U64, key: U64, number: int) -> U64:
    return mix(key + (half * np.uint64(2 * ROUNDS) + np.uint64(number + 1)) * _ADD)


def _add(half: U64, random: U64, size: U64) -> U64:
    """(half + random) modulo size; the multiplication maps 32 random bits to 0 … size-1."""
    moved = half + (((random >> _32) * size) >> _32)
    return np.where(moved >= size, moved - size, moved)

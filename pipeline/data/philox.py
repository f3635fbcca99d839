"""Random numbers that are a function of what they are for: (seed, purpose, epoch, sample).

No generator is shared and none has a state, so a draw never depends on which thread, rank or
restart asks for it. The bits are Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", 2011), computed for many samples at once with NumPy.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def stream_key(seed: int, purpose: str) -> int:
    """64 bits that name one stream of numbers: equal for equal (seed, purpose) on any machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Philox4x32-10.

    Args:
        counter: (4, ...) words of 32 bits, held in uint64.
        key: 64 bits.

    Returns:
        (4, ...) words of 32 bits, held in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (p1 >> _HALF) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])


def uniforms(
    seed: int,
    purpose: str,
    epoch: NDArray[np.int64] | int,
    sample: NDArray[np.int64],
    count: int,
    first_block: int = 0,
) -> NDArray[np.float64]:
    """(n, count) numbers in [0, 1), 32 bits each, for n samples.

    Args:
        epoch: (n,) or one for all, below 2^32.
        sample: (n,) sample ids, not negative.
        count: numbers a sample.
        first_block: numbers come in blocks of 4; skip this many blocks, to draw more later.
    """
    blocks = -(-count // 4)
    counter = np.empty((4, len(sample), blocks), dtype=np.uint64)
    counter[0] = np.arange(first_block, first_block + blocks, dtype=np.uint64)
    counter[1] = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), (len(sample),))[:, None]
    wide = sample.astype(np.uint64)
    counter[2] = (wide & _LOW)[:, None]
    counter[3] = (wide >> _HALF)[:, None]
    words = philox(counter, stream_key(seed, purpose))
    flat = words.transpose(1, 2, 0).reshape(len(sample), 4 * blocks)[:, :count]
    return flat.astype(np.float64) * 2.0**-32


def normals(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) standard normal numbers from (n, 2k) uniform ones (Box and Muller)."""
    half = uniform.shape[1] // 2
    radius = np.sqrt(-2.0 * np.log1p(-uniform[:, :half]))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform[:, half : 2 * half]))


def permutation(seed: int, purpose: str, epoch: int, size: int) -> NDArray[np.int64]:
    """A random order of 0 … size-1.

    Random keys are sorted, each with its own number in its low bits, so that no two are equal and any
    sorting algorithm gives the same result; NumPy promises the bits of its Philox, not of `shuffle`.
    """
    if size == 0:
        return np.empty(0, dtype=np.int64)
    bits = np.random.Philox(
        key=np.array([stream_key(seed, purpose), 0], dtype=np.uint64),
        counter=np.array([0, 0, 0, epoch], dtype=np.uint64),
    )
    mask = np.uint64((1 << max(1, (size - 1).bit_length())) - 1)
    keys = np.asarray(bits.random_raw(size), dtype=np.uint64)
    keys &= ~mask
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= mask
    return keys.view(np.int64)

"""Images that two datasets share, exactly or nearly: pre-training data must not hold the test images.

Each image becomes a hash of 64 bits: which of its lowest 8 × 8 cosine frequencies are above their median
(C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010). Hashes that differ
in few bits are candidates; two candidates are near when their small grey pictures agree too, which flat or
sparse drawings with equal hashes do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.fft import dctn

from pipeline.data.decode import decode
from pipeline.data.view import View

_GREY = 32  # px, side of the grey picture that is hashed and compared
_BLOCK = 2048  # hashes of one dataset compared with _BLOCK of the other at once
_SHOWN, _COLUMNS = 60, 3  # pairs in a picture

Hashed = tuple[NDArray[np.int64], NDArray[np.uint64]]
"""Places in a view, and the hashes of the images there."""
Grey = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """Sample `first` of one view and `second` of the other, by their ids; `bits` of the hash differ,
    `levels` is the mean difference of the grey pictures; `exact`: the same bytes."""

    first: int
    second: int
    bits: int
    levels: float
    exact: bool


def find_duplicates(
    first: View,
    second: View,
    *,
    bits: int = 6,
    levels: float = 10.0,
    threads: int = 1,
    hashes: Hashed | None = None,
) -> list[Pair]:
    """All pairs, in order of ids.

    Args:
        bits: hashes may differ in so many.
        levels: the grey pictures may differ by so much on average, of 255.
        threads: that decode.
        hashes: of `first`, by `hash_view`, for whoever compares it with several.
    """
    pairs = []
    for a, b, distance in _candidates(hashes or hash_view(first, threads), hash_view(second, threads), bits):
        ids = int(first.sample_id(np.array([a]))[0]), int(second.sample_id(np.array([b]))[0])
        pair = _compare(first.read(ids[0]), second.read(ids[1]))
        if pair is not None and pair[0] <= levels:
            pairs.append(Pair(*ids, distance, *pair))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def perceptual_hash(grey: Grey) -> int:
    """64 bits of a (32, 32) grey picture."""
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    signs = low > np.median(low[1:])  # the mean level tells nothing of what is shown
    return int(np.packbits(signs).view(">u8")[0])


def grey_picture(data: bytes) -> Grey | None:
    """(32, 32) levels of an encoded image; None if it cannot be decoded."""
    pixels = decode(data)
    if isinstance(pixels, str):
        return None
    small = Image.fromarray(pixels).convert("L").resize((_GREY, _GREY), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def hash_view(view: View, threads: int) -> Hashed:
    """Places in the view, and hashes, of the images that can be decoded."""
    ids = view.sample_id(np.arange(view.samples, dtype=np.int64))

    def hash_one(sample: int) -> int | None:
        grey = grey_picture(view.read(sample))
        return None if grey is None else perceptual_hash(grey)

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(hash_one, ids.tolist(), chunksize=64))
    places = [place for place, value in enumerate(found) if value is not None]
    values = [value for value in found if value is not None]
    return np.array(places, dtype=np.int64), np.array(values, dtype=np.uint64)


def _candidates(first: Hashed, second: Hashed, bits: int) -> Iterator[tuple[int, int, int]]:
    """(place, place, differing bits) of hashes that are close: about 1 ns a pair."""
    for start in range(0, len(first[1]), _BLOCK):
        block = first[1][start : start + _BLOCK, None]
        for other in range(0, len(second[1]), _BLOCK):
            distance = np.bitwise_count(block ^ second[1][None, other : other + _BLOCK])
            for a, b in np.argwhere(distance <= bits).tolist():
                yield int(first[0][start + a]), int(second[0][other + b]), int(distance[a, b])


def _compare(first: bytes, second: bytes) -> tuple[float, bool] | None:
    a, b = grey_picture(first), grey_picture(second)
    if a is None or b is None:
        return None
    return float(np.abs(a - b).mean()), first == second


def pair_sheet(path: Path, pairs: list[Pair], first: View, second: View, side: int = 96) -> int:
    """A PNG of the pairs side by side, with their keys; returns how many were drawn, at most `_SHOWN`."""
    shown = pairs[:_SHOWN]
    columns = min(_COLUMNS, max(1, len(shown)))
    width, height = 4 * side, side + 14
    sheet = Image.new("RGB", (columns * width, max(1, -(-len(shown) // columns)) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, pair in enumerate(shown):
        x, y = number % columns * width, number // columns * height
        for place, (view, sample) in enumerate(((first, pair.first), (second, pair.second))):
            pixels = decode(view.read(sample))
            assert not isinstance(pixels, str), "a pair of images that were decoded before"
            image = Image.fromarray(pixels)
            image.thumbnail((side, side))
            sheet.paste(image, (x + place * side, y))
        found = "the same bytes" if pair.exact else f"{pair.bits} bits, {pair.levels:.1f} levels"
        draw.text((x + 2 * side + 4, y + 4), found, fill="black")
        draw.text((x + 2, y + side), f"{first.key(pair.first)} | {second.key(pair.second)}", fill="black")
    sheet.save(path)
    return len(shown)

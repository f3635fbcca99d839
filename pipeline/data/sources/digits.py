"""The 1,797 handwritten digits inside scikit-learn, 8 × 8 grey levels, enlarged.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. No download.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import DigitsSource
from pipeline.data.philox import permutation
from pipeline.data.sources.encode import jpeg
from pipeline.data.sources.source import Item, Source, SourceSplit


def open_digits(settings: DigitsSource) -> Source:
    """The last `test_fraction` of each digit's samples, in an order drawn from `seed`, are the test split."""
    labels = np.asarray(load_digits().target, dtype=np.int64)
    order = permutation(settings.seed, "digits/split", 0, len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        test[own[len(own) - round(settings.test_fraction * len(own)) :]] = True
    splits: dict[str, SourceSplit] = {
        "train": _Digits(settings.image_size, np.flatnonzero(~test)),
        "test": _Digits(settings.image_size, np.flatnonzero(test)),
    }
    return Source(tuple(str(digit) for digit in range(10)), splits)


class _Digits(SourceSplit):
    """The digits of these numbers in scikit-learn's order."""

    def __init__(self, size: int, chosen: NDArray[np.int64]) -> None:
        self._size = size
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def items(self, numbers: NDArray[np.int64]) -> Iterator[Item]:
        digits = load_digits()
        for number in self._chosen[numbers]:
            small = Image.fromarray(np.asarray(digits.images[number] * 15.9375, dtype=np.uint8))
            large = small.resize((self._size, self._size), Image.Resampling.BICUBIC)
            yield Item(jpeg(np.asarray(large)), "jpg", int(digits.target[number]), f"{number:04d}")

"""Mixup and cutmix: pairs of a batch lend each other a share of pixels and label.

Pairs are the neighbours (2i, 2i+1) of the sorted batch, so they do not depend on the number of ranks;
what is drawn for a pair comes from its first sample's key. Both images keep the larger share of
themselves. H. Zhang et al., "mixup", 2018; S. Yun et al., "CutMix", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from pipeline.config import AugmentSettings
from pipeline.data.philox import uniforms
from pipeline.errors import ConfigError

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What is done with the pairs of one rank's part.

    share: (n/2,) each image's own share of itself, from 0.5 to 1. box: (n/2, 4) top, left, height and width
    that are exchanged, or zeros for mixup.
    """

    share: NDArray[np.float64]
    box: NDArray[np.int64]


def draw_pairs(
    settings: AugmentSettings, seed: int, epoch: NDArray[np.int64], sample: NDArray[np.int64], size: int
) -> Pairs | None:
    """What happens to the pairs of these samples; None if the settings mix nothing.

    Raises:
        ConfigError: the samples are an odd number.
    """
    if not settings.mixup and not settings.cutmix:
        return None
    if len(sample) % 2:
        raise ConfigError(
            f"{len(sample)} samples of a batch on each rank, and mixing in pairs",
            "an even number",
            "change batch or the number of ranks, or set mixup and cutmix to 0",
        )
    random = uniforms(seed, "mix", epoch[::2], sample[::2], 4)
    cut = random[:, 0] * ((settings.mixup > 0) + (settings.cutmix > 0)) >= (settings.mixup > 0)
    parameter = np.where(cut, settings.cutmix, settings.mixup)
    drawn = betaincinv(parameter, parameter, random[:, 1])
    share = np.maximum(drawn, 1 - drawn)
    side = np.rint(size * np.sqrt(1 - share)).astype(np.int64) * cut
    corner = np.floor(random[:, 2:4] * (size - side + 1)[:, None]).astype(np.int64)
    box = np.column_stack([corner * cut[:, None], side, side])
    return Pairs(np.where(cut, 1 - side**2 / size**2, share), box)


def mix_pixels(pixels: Pixels, first: int, pairs: Pairs) -> None:
    """Mix the images `first` and `first` + 1 of (n, H, W, 3) in place."""
    own, other = pixels[first], pixels[first + 1]
    share = float(pairs.share[first // 2])
    top, left, height, width = pairs.box[first // 2].tolist()
    if height:
        inside = (slice(top, top + height), slice(left, left + width))
        kept = own[inside].copy()
        own[inside] = other[inside]
        other[inside] = kept
    elif share < 1:
        weight = np.float32(share)
        difference = own.astype(np.float32) - other
        middle = other + weight * difference
        other[:] = np.rint(own - weight * difference)
        own[:] = np.rint(middle)


def mix_targets(targets: NDArray[np.float32], whole: NDArray[np.bool_], pairs: Pairs) -> NDArray[np.float32]:
    """(n, K) targets of mixed images; pairs of which one image is not `whole` (n,) stay as they are."""
    mixed = whole[::2] & whole[1::2]
    share = np.where(mixed, pairs.share, 1.0).astype(np.float32)
    own = np.repeat(share, 2)[:, None]
    swapped = targets.reshape(-1, 2, targets.shape[1])[:, ::-1].reshape(targets.shape)
    return np.asarray(own * targets + (1 - own) * swapped)

"""The convolutions of BiT ResNets and of the hybrids' stem as numbers: which channels, strides and padding.

Arithmetic over configurations, without PyTorch: what counts a model's work need not build it.
"""

from collections.abc import Iterator

from model.config import BiTConfig, ViTConfig

ROOT_CHANNELS = 64


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and behind an axis for ceil(length / stride) windows; the odd one goes behind."""
    missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return missing // 2, missing - missing // 2


def unit_plan(config: BiTConfig) -> Iterator[tuple[int, int, int]]:
    """Channels before, channels after and stride of each residual unit."""
    before = 64 * config.width_factor
    for stage, units in enumerate(config.blocks):
        after = 256 * config.width_factor * 2**stage
        for unit in range(units):
            yield before, after, 2 if stage > 0 and unit == 0 else 1
            before = after


def stem_plan(config: ViTConfig) -> Iterator[tuple[int, int, int]]:
    """Channels before, channels after and stride of each residual unit."""
    before = ROOT_CHANNELS
    for stage, units in enumerate(config.stem or ()):
        after = 256 * 2**stage
        for unit in range(units):
            yield before, after, 2 if stage > 0 and unit == 0 else 1
            before = after


def stem_channels(config: ViTConfig) -> int:
    """Channels that the patch embedding sees: 3 without a stem."""
    if config.stem is None:
        return 3
    return 256 * 2 ** (len(config.stem) - 1) if config.stem else ROOT_CHANNELS

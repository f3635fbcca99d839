"""The convolutions of BiT ResNets and of the hybrids' stem as numbers: which channels, strides and padding.

Arithmetic over configurations, without PyTorch: what counts a model's work need not build it.
"""

from collections.abc import Iterator, Sequence

from model.config import BiTConfig, ViTConfig

ROOT_CHANNELS = 64


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels before and behind an axis for ceil(length / stride) windows; the odd one goes behind."""
    missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return missing // 2, missing - missing // 2


def unit_plan(config: BiTConfig) -> Iterator[tuple[int, int, int]]:
    """Channels before, channels after and stride of each residual unit of a BiT ResNet."""
    return _units(config.blocks, config.width_factor)


def stem_plan(config: ViTConfig) -> Iterator[tuple[int, int, int]]:
    """The same of a hybrid's stem."""
    return _units(config.stem or (), 1)


def _units(blocks: Sequence[int], width_factor: int) -> Iterator[tuple[int, int, int]]:
    before = ROOT_CHANNELS * width_factor
    for stage, units in enumerate(blocks):
        after = 256 * width_factor * 2**stage
        for unit in range(units):
            yield before, after, 2 if stage > 0 and unit == 0 else 1
            before = after


def stem_channels(config: ViTConfig) -> int:
    """Channels that the patch embedding sees: 3 without a stem."""
    if config.stem is None:
        return 3
    return 256 * 2 ** (len(config.stem) - 1) if config.stem else ROOT_CHANNELS

"""Counting: parameters, multiply-accumulates of one image, exaFLOPs of a training run.

Convention of the paper's Table 6: matrix products and convolutions only, one image, head excluded (with the
hidden layer before it); a training step costs 6 FLOPs for each multiply-accumulate (2, times a forward and a
backward of twice that). How well this fits the printed values is in docs/results/table6-exaflops.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from model.config import BiTConfig, ModelConfig, ViTConfig, as_pair
from model.plans import ROOT_CHANNELS, same_padding, stem_channels, stem_plan, unit_plan

if TYPE_CHECKING:
    from torch import nn

FLOPS_PER_MAC = 2
FORWARD_AND_BACKWARD = 3

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Conv:
    """A convolution over a map of `size` (height, width), square kernel, padded as SAME or half of it."""

    before: int
    after: int
    kernel: int
    stride: int
    size: Size
    same: bool

    def macs(self, padding_counts: bool) -> int:
        """Multiply-accumulates; without the kernel's taps on padding if they do not count."""
        taps = (self._taps(length, padding_counts) for length in self.size)
        return self.before * self.after * prod(taps)

    def output_size(self) -> Size:
        """Height and width of the output."""
        height, width = (-(-length // self.stride) for length in self.size)
        return height, width

    def _taps(self, length: int, padding_counts: bool) -> int:
        windows = -(-length // self.stride)
        if padding_counts:
            return windows * self.kernel
        first = -same_padding(length, self.kernel, self.stride)[0] if self.same else -(self.kernel // 2)
        starts = (first + window * self.stride for window in range(windows))
        return sum(min(start + self.kernel, length) - max(start, 0) for start in starts)


def count_parameters(model: "nn.Module | ModelConfig", *, head: bool = True) -> int:
    """Trainable numbers of a model or of a configuration; nothing is allocated for the latter.

    `head` false leaves out the last linear layer and the hidden layer before it.
    """
    if isinstance(model, BiTConfig | ViTConfig):
        # All else here is arithmetic, which the driver of a run does without PyTorch.
        import torch

        from model.zoo import build

        with torch.device("meta"):
            model = build(model)
    left_out = () if head else ("head.", "pre_logits.")
    return sum(p.numel() for name, p in model.named_parameters() if not name.startswith(left_out))


def macs(
    config: ModelConfig, image_size: int | tuple[int, int] | None = None, *, padding_counts: bool = True
) -> int:
    """Multiply-accumulates of one image, forward, at the configuration's size (pixels) or another.

    `padding_counts` false leaves out what a convolution multiplies with zero padding. The network as defined
    is counted: that our last block skips what a class token does not read (model/vit.py) is not taken off.
    """
    if image_size is not None:
        config = replace(config, image_size=as_pair(image_size))
    convolutions = sum(conv.macs(padding_counts) for conv in _convolutions(config))
    return convolutions + (_vit_macs(config) if isinstance(config, ViTConfig) else 0)


def training_exaflops(
    config: ModelConfig, images: float, image_size: int | tuple[int, int] | None = None
) -> float:
    """1e18 floating-point operations of training on `images` images (size of the data set x epochs)."""
    return FLOPS_PER_MAC * FORWARD_AND_BACKWARD * macs(config, image_size) * images / 1e18


def _vit_macs(config: ViTConfig) -> int:
    tokens, width = config.num_tokens, config.width
    block = tokens * (4 * width**2 + 2 * width * config.mlp) + 2 * tokens**2 * width
    if config.positions == "relative":
        block += tokens * (2 * tokens - 1) * width
    patches = prod(config.grid) * prod(config.patch) * stem_channels(config) * width
    return patches + config.depth * block + (_pool_macs(config) if config.pool == "map" else 0)


def _pool_macs(config: ViTConfig) -> int:
    tokens, width = config.num_tokens, config.width
    return 2 * width**2 * (1 + tokens) + 2 * tokens * width + 2 * width * config.mlp


def _convolutions(config: ModelConfig) -> Iterator[Conv]:
    if isinstance(config, BiTConfig):
        plan, root, same = unit_plan(config), 64 * config.width_factor, False
    elif config.stem is not None:
        plan, root, same = stem_plan(config), ROOT_CHANNELS, True
    else:
        return
    first = Conv(3, root, 7, 2, config.image_size, same)
    yield first
    # The pool multiplies nothing, but halves the map.
    size = Conv(root, root, 3, 2, first.output_size(), same).output_size()
    for before, after, stride in plan:
        middle = Conv(after // 4, after // 4, 3, stride, size, same)
        yield Conv(before, after // 4, 1, 1, size, same)
        yield middle
        yield Conv(after // 4, after, 1, 1, middle.output_size(), same)
        if before != after or stride != 1:
            yield Conv(before, after, 1, stride, size, same)
        size = middle.output_size()

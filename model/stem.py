"""The convolutional stem of the hybrids: a post-activation ResNet in front of the patches.

Source: vit_jax models_resnet.py. Unlike BiT: norm and ReLU stand behind each convolution, the projection has
its own norm, the third norm's scale starts at 0, and every window is padded as TensorFlow's SAME. Epsilons
differ between the authors' code and timm; they are part of the configuration.

Axes: B batch, C channels, H and W pixels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ViTConfig
from model.plans import ROOT_CHANNELS, stem_plan
from model.resnet import GROUPS, StandardisedConv, pad_same


class Stem(nn.Module):
    """Root and residual units; the model runs them one by one, so that each can be recomputed by itself."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.root = StemRoot(config)
        self.blocks = nn.ModuleList(
            StemUnit(config, before, after, stride) for before, after, stride in stem_plan(config)
        )


class StemRoot(nn.Module):
    """7x7 convolution, norm, ReLU and 3x3 max pool; convolution and pool have stride 2."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.conv = conv(config, 3, ROOT_CHANNELS, 7, 2)
        self.norm = nn.GroupNorm(GROUPS, ROOT_CHANNELS, config.stem_norm_eps)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 64, H / 4, W / 4), rounded up."""
        x_BCHW = F.relu(self.norm(self.conv(x_BCHW)), inplace=True)
        return F.max_pool2d(pad_same(x_BCHW, 3, 2), 3, 2)  # zeros are below every activated value


class StemUnit(nn.Module):
    """Bottleneck of 1x1, 3x3 and 1x1 convolutions, each followed by a norm; ReLU after the sum."""

    def __init__(self, config: ViTConfig, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle, eps = after // 4, config.stem_norm_eps
        self.conv1 = conv(config, before, middle, 1, 1)
        self.norm1 = nn.GroupNorm(GROUPS, middle, eps)
        self.conv2 = conv(config, middle, middle, 3, stride)
        self.norm2 = nn.GroupNorm(GROUPS, middle, eps)
        self.conv3 = conv(config, middle, after, 1, 1)
        self.norm3 = nn.GroupNorm(GROUPS, after, eps)
        changes = before != after or stride != 1
        self.conv_proj = conv(config, before, after, 1, stride) if changes else None
        self.norm_proj = nn.GroupNorm(GROUPS, after, eps) if changes else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / stride, W / stride)."""
        shortcut_BCHW = x_BCHW
        if self.conv_proj is not None and self.norm_proj is not None:
            shortcut_BCHW = self.norm_proj(self.conv_proj(x_BCHW))
        y_BCHW = F.relu(self.norm1(self.conv1(x_BCHW)), inplace=True)
        y_BCHW = F.relu(self.norm2(self.conv2(y_BCHW)), inplace=True)
        y_BCHW = self.norm3(self.conv3(y_BCHW))
        return F.relu(shortcut_BCHW + y_BCHW, inplace=True)


def conv(config: ViTConfig, before: int, after: int, kernel: int, stride: int) -> StandardisedConv:
    """A standardised convolution with the configuration's epsilon and SAME padding."""
    return StandardisedConv(
        before, after, kernel, stride, config.stem_conv_eps, config.stem_conv_eps_in, same=True
    )

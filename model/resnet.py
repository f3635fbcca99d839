"""BiT ResNets: pre-activation, group norm, standardised convolutions (which the hybrids share).

Source: arXiv 1912.11370 and its PyTorch code (google-research/big_transfer, bit_pytorch/models.py): padding
is fixed and symmetric, the projection takes the activated input, the 3x3 convolution strides, no convolution
has a bias.

Axes: B batch, C channels, H and W pixels, D = channels of the last stage.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import BiTConfig, EpsPlace
from model.interface import ImageModel, check_images
from model.plans import same_padding, unit_plan

GROUPS = 32  # of every group norm


class BiT(ImageModel):
    """A BiT ResNet; see `BiTConfig`. Takes images of any size; the configuration's is what is counted."""

    config: BiTConfig

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        self.root = BiTRoot(config)
        self.blocks = nn.ModuleList(
            BiTUnit(config, before, after, stride) for before, after, stride in unit_plan(config)
        )
        self.norm = nn.GroupNorm(GROUPS, config.feature_width, config.norm_eps)
        self.head = nn.Linear(config.feature_width, config.num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Mean over positions of the last activated map, (B, D), for images (B, 3, H, W)."""
        check_images(x_BCHW, None)
        x_BCHW = self.root(x_BCHW)
        for block in self.blocks:
            x_BCHW = self.run_block(block, x_BCHW)
        return F.relu(self.norm(x_BCHW)).mean(dim=(2, 3))


class BiTRoot(nn.Module):
    """7x7 convolution and 3x3 max pool, each with stride 2; zeros, not minus infinity, surround the pool."""

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.conv = StandardisedConv(3, 64 * config.width_factor, 7, 2, config.conv_eps, "variance")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 64 x width, H / 4, W / 4)."""
        y_BCHW: Tensor = F.max_pool2d(F.pad(self.conv(x_BCHW), (1, 1, 1, 1)), 3, 2)
        return y_BCHW


class BiTUnit(nn.Module):
    """Bottleneck: norm and ReLU before each convolution (1x1, 3x3, 1x1); projection where shapes change."""

    def __init__(self, config: BiTConfig, before: int, after: int, stride: int) -> None:
        super().__init__()
        middle = after // 4
        self.norm1 = nn.GroupNorm(GROUPS, before, config.norm_eps)
        self.conv1 = StandardisedConv(before, middle, 1, 1, config.conv_eps, "variance")
        self.norm2 = nn.GroupNorm(GROUPS, middle, config.norm_eps)
        self.conv2 = StandardisedConv(middle, middle, 3, stride, config.conv_eps, "variance")
        self.norm3 = nn.GroupNorm(GROUPS, middle, config.norm_eps)
        self.conv3 = StandardisedConv(middle, after, 1, 1, config.conv_eps, "variance")
        changes = before != after or stride != 1
        self.conv_proj = (
            StandardisedConv(before, after, 1, stride, config.conv_eps, "variance") if changes else None
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / stride, W / stride)."""
        active_BCHW = F.relu(self.norm1(x_BCHW), inplace=True)
        shortcut_BCHW: Tensor = x_BCHW if self.conv_proj is None else self.conv_proj(active_BCHW)
        y_BCHW: Tensor = self.conv1(active_BCHW)
        y_BCHW = self.conv2(F.relu(self.norm2(y_BCHW), inplace=True))
        y_BCHW = self.conv3(F.relu(self.norm3(y_BCHW), inplace=True))
        return shortcut_BCHW + y_BCHW


class StandardisedConv(nn.Conv2d):
    """A convolution without bias whose kernels are brought to mean 0 and deviation 1, each output by itself.

    `eps` is added to the variance (BiT, timm) or to the deviation (the authors' hybrids). `same` pads as
    TensorFlow does: as much as the last window needs, the odd pixel behind; otherwise half a kernel on each
    side.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int,
        stride: int,
        eps: float,
        eps_in: EpsPlace,
        same: bool = False,
    ) -> None:
        super().__init__(before, after, kernel, stride, 0 if same else kernel // 2, bias=False)
        self.eps = eps
        self.eps_in = eps_in
        self.same = same

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / stride, W / stride), both rounded up."""
        if self.same:
            x_BCHW = pad_same(x_BCHW, self.kernel_size[0], self.stride[0])
        y_BCHW: Tensor = F.conv2d(
            x_BCHW, self.standardised().to(x_BCHW.dtype), None, self.stride, self.padding
        )
        return y_BCHW

    def standardised(self) -> Tensor:
        """The kernels that are convolved with, of the weight's shape."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        deviation = variance.sqrt() + self.eps if self.eps_in == "std" else (variance + self.eps).sqrt()
        return (self.weight - mean) / deviation


def pad_same(x_BCHW: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding of height and width with `value`."""
    top, bottom = same_padding(x_BCHW.shape[2], kernel, stride)
    left, right = same_padding(x_BCHW.shape[3], kernel, stride)
    return F.pad(x_BCHW, (left, right, top, bottom), value=value)

"""The stem of the hybrids: plan, sizes, activation; outputs against timm are in tests/numerics."""

import pytest
import torch

from model import create_model
from model.config import ViTConfig
from model.plans import stem_channels, stem_plan
from model.stem import Stem
from model.zoo import model_config


def config(stem: tuple[int, ...] | None, patch: int = 1) -> ViTConfig:
    found = model_config("vit_ti16", num_classes=2, image_size=64, patch=patch, stem=stem)
    assert isinstance(found, ViTConfig)
    return found


@pytest.mark.parametrize(
    ("stem", "channels"), [(None, 3), ((), 64), ((1,), 256), ((3, 4, 9), 1024), ((3, 4, 6, 3), 2048)]
)
def test_channels_double_with_each_stage(stem: tuple[int, ...] | None, channels: int) -> None:
    assert stem_channels(config(stem)) == channels


def test_first_unit_of_each_later_stage_strides() -> None:
    assert list(stem_plan(config((2, 2)))) == [(64, 256, 1), (256, 256, 1), (256, 512, 2), (512, 512, 1)]


@pytest.mark.parametrize("size", [64, 60, 37])
def test_maps_shrink_by_the_stride_rounded_up(size: int) -> None:
    stem = Stem(config((1, 1)))
    x = stem.root(torch.randn(1, 3, size, size))
    for unit in stem.blocks:
        x = unit(x)
    assert x.shape == (1, 512, -(-size // 8), -(-size // 8))
    assert (x >= 0).all(), "the last thing a unit does is a ReLU"


def test_a_fresh_unit_passes_its_shortcut_through() -> None:
    model = create_model("r26_vit_s32", num_classes=2, image_size=32, depth=1)
    stem = model.get_submodule("stem")
    assert isinstance(stem, Stem)
    x = torch.rand(1, 256, 4, 4)
    assert torch.equal(stem.blocks[1](x), x)

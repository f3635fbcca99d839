"""Initial weights: complete, as tabulated, and able to fill a model one parameter at a time."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from model import create_model
from model.initialise import role_of
from model.zoo import build, model_config

WIDTH = 96


def fresh(**options: object) -> nn.Module:
    return create_model(
        "vit_ti8",
        num_classes=20,
        image_size=32,
        generator=torch.Generator().manual_seed(0),
        **{"width": WIDTH, "depth": 2, "heads": 3, "mlp": 384, **options},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["vit_ti16", "vit_h14", "r_vit_ti16", "r26_vit_s32", "bit_r26x1"])
def test_every_parameter_of_every_kind_of_model_has_a_role(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=2, representation=name.startswith("vit"))
    for parameter_name, _ in model.named_parameters():
        role_of(parameter_name)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "map"},
        {"positions": "relative"},
        {"positions": "learned2d", "positions_at": "layers"},
        {"qk_norm": True, "representation": True},
    ],
)
def test_nothing_is_left_unfilled(options: dict[str, object]) -> None:
    for name, parameter in fresh(**options).named_parameters():
        assert parameter.isfinite().all(), name


def test_a_forgotten_parameter_is_an_error_not_leftover_memory() -> None:
    model = fresh()
    model.register_parameter("forgotten", nn.Parameter(torch.zeros(3)))
    with pytest.raises(AssertionError, match="no initial value is defined for parameter forgotten"):
        model.init_weights()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("scheme", "key", "std"),
    [
        ("paper", "embedding.patch.weight", math.sqrt(1 / 192)),
        ("paper", "blocks.0.attention.qkv.weight", math.sqrt(3 / WIDTH) / math.sqrt(3)),
        ("paper", "blocks.0.attention.out.weight", math.sqrt(3 / WIDTH) / math.sqrt(3)),
        ("paper", "blocks.0.mlp.up.weight", math.sqrt(6 / 480) / math.sqrt(3)),
        ("paper", "blocks.0.mlp.up.bias", 1e-6),
        ("paper", "positions.table", 0.02),
        ("paper", "pre_logits.weight", math.sqrt(1 / WIDTH)),
        ("big_vision", "positions.table", 1 / math.sqrt(WIDTH)),
        ("timm_jax", "blocks.0.attention.qkv.weight", math.sqrt(6 / (4 * WIDTH)) / math.sqrt(3)),
        ("timm", "blocks.0.attention.qkv.weight", 0.02),
        ("timm", "embedding.patch.weight", math.sqrt(1 / 192) / math.sqrt(3)),
        ("timm", "head.weight", 0.02),
        ("torchvision", "embedding.patch.weight", 0.8796 * math.sqrt(1 / 192)),
        ("torchvision", "blocks.0.attention.out.weight", math.sqrt(1 / WIDTH) / math.sqrt(3)),
        ("huggingface", "embedding.patch.weight", 0.02),
        ("huggingface", "embedding.class_token", 0.02),
    ],
)
def test_deviations_are_as_tabulated(scheme: str, key: str, std: float) -> None:
    parameter = fresh(scheme=scheme, representation=True).get_parameter(key)
    # Four deviations of the sample's own uncertainty.
    assert float(parameter.detach().std()) == pytest.approx(std, rel=4 / math.sqrt(2 * parameter.numel()))


def test_the_paper_starts_with_zeros_where_it_says_so() -> None:
    model = fresh(head_bias=-10.0)
    for key in (
        "head.weight",
        "embedding.class_token",
        "blocks.1.attention.qkv.bias",
        "embedding.patch.bias",
    ):
        assert not model.get_parameter(key).any(), key
    assert (model.get_parameter("head.bias") == -10).all()
    assert (model.get_parameter("blocks.0.norm1.weight") == 1).all()


def test_truncated_normals_are_cut_at_two_deviations() -> None:
    kernel = fresh().get_parameter("embedding.patch.weight")
    assert float(kernel.detach().abs().max()) <= 2 * math.sqrt(1 / 192) / 0.8796


def test_hybrid_branches_start_silent() -> None:
    model = create_model("r26_vit_s32", num_classes=2, image_size=32)
    for name, parameter in model.named_parameters():
        if name.endswith("norm3.weight") and name.startswith("stem"):
            assert not parameter.any(), name


def test_parameters_can_be_filled_one_at_a_time_with_the_same_numbers() -> None:
    """As an engine that splits parameters over ranks does it: each is whole only inside `gather`."""
    config = model_config("vit_ti8", num_classes=4, image_size=32, width=32, depth=2, heads=2, mlp=64)
    expected = build(config, torch.Generator().manual_seed(3)).state_dict()
    model = build(config, initialise=False)
    whole = {id(parameter): parameter.shape for parameter in model.parameters()}
    parts: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)

    @contextmanager
    def gather(parameter: nn.Parameter) -> Iterator[None]:
        parameter.data = torch.empty(whole[id(parameter)])
        yield
        parts[id(parameter)] = parameter.data
        parameter.data = torch.empty(0)

    model.init_weights(torch.Generator().manual_seed(3), gather)
    for name, parameter in model.named_parameters():
        assert torch.equal(parts[id(parameter)], expected[name]), name


def test_a_model_from_the_meta_device_comes_to_life() -> None:
    small = {"width": 32, "heads": 2, "depth": 1}
    config = model_config("vit_ti8", num_classes=4, image_size=32, positions="sincos2d", **small)
    expected = build(config, torch.Generator().manual_seed(3)).eval()
    with torch.device("meta"):
        model = build(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(3))
    images = torch.ones(1, 3, 32, 32)
    assert torch.equal(model.eval().features(images), expected.features(images))

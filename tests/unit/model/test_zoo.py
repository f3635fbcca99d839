"""Names to models: every listed one builds, unknown ones name the nearest, a seed fixes the weights."""

import pytest
import torch

from model import create_model, list_models
from model.config import ViTConfig
from model.interface import ImageModel
from model.zoo import build, model_config

DEMO = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}


@pytest.mark.parametrize("name", ["vit_ti16", "r_vit_ti16", "r26_vit_s32", "bit_r26x1", "vit_so400m14"])
def test_listed_models_have_one_interface(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=5)
        images = torch.empty(2, 3, 224, 224)
    assert isinstance(model, ImageModel)
    assert model(images).shape == (2, 5)
    assert model.features(images).shape == (2, model.config.feature_width)
    assert model.head.weight.shape == (5, model.config.feature_width)
    assert len(model.blocks) > 1


def test_all_names_are_known_and_differ() -> None:
    names = list_models()
    assert len(set(names)) == len(names)
    for name in names:
        assert model_config(name, num_classes=2, image_size=448).name == name


def test_options_replace_fields_and_any_patch_works() -> None:
    config = model_config("vit_ti6", num_classes=4, image_size=(24, 48), dropout=0.1, **DEMO)
    assert isinstance(config, ViTConfig)
    assert (config.patch, config.width, config.dropout, config.grid) == ((6, 6), 32, 0.1, (4, 8))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vit_b16k", {}, "unknown model 'vit_b16k'; did you mean 'vit_b16'"),
        ("bit_r51x1", {}, "unknown model 'bit_r51x1'; did you mean 'bit_r50x1'"),
        ("vit_b016", {}, "unknown model 'vit_b016'"),
        ("resnet", {}, "unknown model 'resnet'"),
        ("vit_b16", {"droput": 0.1}, "unknown option of model 'vit_b16' 'droput'; did you mean 'dropout'"),
        ("bit_r50x1", {"pool": "gap"}, "unknown option of model 'bit_r50x1' 'pool'"),
        ("bit_r50x1", {"representation": True}, "has no hidden layer before its head"),
        ("vit_b16", {"image_size": 230}, "set image_size to 224x224"),
    ],
)
def test_unknown_names_and_options_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=3, **options)  # type: ignore[arg-type]


def test_relative_positions_choose_their_place() -> None:
    config = model_config("vit_ti8", num_classes=2, image_size=32, positions="relative")
    assert isinstance(config, ViTConfig)
    assert config.positions_at == "layers"


def test_one_seed_gives_one_set_of_weights_and_another_a_different_one() -> None:
    config = model_config("vit_ti8", num_classes=4, image_size=32, representation=True, **DEMO)
    first, again, other = (
        build(config, torch.Generator().manual_seed(seed)).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if not torch.equal(first[key], other[key])]
    assert "blocks.0.attention.qkv.weight" in drawn
    assert "pre_logits.weight" in drawn


def test_weights_do_not_depend_on_the_numbers_precision() -> None:
    config = model_config("vit_ti8", num_classes=4, image_size=32, **DEMO)
    whole = build(config, torch.Generator().manual_seed(1))
    half = build(config, initialise=False).bfloat16()
    half.init_weights(torch.Generator().manual_seed(1))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter.bfloat16(), half.get_parameter(name)), name

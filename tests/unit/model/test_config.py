"""Configurations: round trips through JSON and one clear message for each thing that cannot be."""

import json
from dataclasses import FrozenInstanceError

import pytest

from model.config import BiTConfig, ViTConfig, config_from_dict
from model.zoo import list_models, model_config

TINY = {"name": "tiny", "num_classes": 3, "image_size": (32, 32), "patch": (8, 8)}
SIZE = {"width": 32, "depth": 1, "heads": 4, "mlp": 64}


def tiny(**changes: object) -> ViTConfig:
    return ViTConfig(**{**TINY, **SIZE, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_models())
def test_every_listed_model_survives_json(name: str) -> None:
    config = model_config(name, num_classes=10, image_size=448)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        tiny().width = 64  # type: ignore[misc]


def test_grid_and_tokens_of_a_rectangle() -> None:
    config = tiny(image_size=(24, 40), patch=(8, 4))
    assert config.grid == (3, 10)
    assert config.num_tokens == 31
    assert tiny(image_size=(24, 40), patch=(8, 4), pool="gap").num_tokens == 30


@pytest.mark.parametrize(
    ("name", "stride", "grid"),
    [
        ("r_vit_ti16", 4, (7, 7)),
        ("r26_vit_s32", 32, (7, 7)),
        ("r50_vit_b16", 16, (14, 14)),
        ("vit_h14", 1, (16, 16)),
    ],
)
def test_hybrids_see_the_grid_of_their_stem(name: str, stride: int, grid: tuple[int, int]) -> None:
    config = model_config(name, num_classes=10)
    assert isinstance(config, ViTConfig)
    assert (config.stem_stride, config.grid) == (stride, grid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "width 32 is not divisible by heads 5.*set heads to 4, the nearest that works"),
        ({"image_size": (33, 40)}, "image_size 33x40 .* patch of 8x8 pixels; set image_size to 32x40"),
        ({"image_size": (4, 32)}, "set image_size to 8x32"),
        ({"image_size": 32}, "image_size is 32, expected a height and a width"),
        ({"width": 0}, "width is 0, expected a whole number of at least 1"),
        ({"depth": 1.5}, "depth is 1.5, expected a whole number"),
        ({"mlp": True}, "mlp is True, expected a whole number"),
        ({"dropout": 1.0}, r"dropout is 1.0, expected a number from 0 up to"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is -0.1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0, expected a number above 0"),
        ({"head_bias": float("nan")}, "head_bias is nan, expected a finite number"),
        ({"qk_norm": 1}, "qk_norm is 1, expected true or false"),
        ({"pool": "tokn"}, "unknown pool 'tokn'; did you mean 'token'"),
        ({"gelu": None}, "gelu is None, expected one of tanh, erf"),
        ({"stem": [2]}, r"stem is \[2\], expected a list of at least 0 numbers"),
        ({"stem": (2, 0)}, "stem is 0, expected a whole number of at least 1"),
        ({"positions": "relative"}, "set positions_at to 'layers' or 'layers_shared'"),
        ({"positions": "none", "positions_at": "layers"}, "would have no effect"),
        ({"positions": "sincos2d", "width": 30, "heads": 2}, "need a width divisible by 4, found 30"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": ()}, "blocks is .*, expected a list of at least 1"),
        ({"width_factor": 0}, "width_factor is 0"),
        ({"conv_eps": -1.0}, "conv_eps is -1.0, expected a number above 0"),
    ],
)
def test_bit_refuses_too(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"name": "tiny", "num_classes": 3, "blocks": (1,), **changes}
    with pytest.raises(ValueError, match=message):
        BiTConfig(**fields)  # type: ignore[arg-type]


def test_dictionaries_name_unknown_missing_and_foreign_content() -> None:
    values = tiny().to_dict()
    with pytest.raises(
        ValueError, match="unknown key of the model configuration 'widht'; did you mean 'width'"
    ):
        config_from_dict({**values, "widht": 3})
    del values["depth"]
    with pytest.raises(ValueError, match="model configuration lacks depth"):
        config_from_dict(values)
    with pytest.raises(ValueError, match="of kind 'mlp', expected one of vit, bit"):
        config_from_dict({"kind": "mlp"})

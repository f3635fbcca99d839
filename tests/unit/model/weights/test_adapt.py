"""Fine-tuning: another size, another task, the rest of the network untouched."""

import pytest
import torch

from model.config import ModelConfig
from model.positions import resize_positions
from model.weights import adapt, load_into
from model.zoo import build, model_config

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp": 16}


def small(name: str = "vit_ti8", **options: object) -> ModelConfig:
    size = SMALL if name.startswith("vit") else {}
    return model_config(name, **{"num_classes": 5, "image_size": 32, **size, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", ["learned", "learned2d", "sincos2d", "none"])
def test_another_size_and_head_fit_the_new_model(positions: str) -> None:
    old = small(representation=True, positions=positions, dropout=0.1)
    new = small(num_classes=7, image_size=(40, 64), positions=positions, head_bias=-3.0)
    state = build(old).state_dict()
    adapted = adapt(state, old, new, new_head=True)
    model = build(new)
    load_into(model, adapted)
    assert not adapted["head.weight"].any()
    assert (adapted["head.bias"] == -3.0).all()
    for key, value in state.items():
        if not key.startswith(("head.", "pre_logits.", "positions.")):
            assert torch.equal(adapted[key], value), key
    assert torch.isfinite(model(torch.zeros(1, 3, 40, 64))).all()


def test_positions_follow_the_rule_and_keep_the_class_row() -> None:
    old, new = small(), small(image_size=(40, 64))
    state = build(old).state_dict()
    for rule in ("align_corners_bilinear", "bicubic_antialias"):
        adapted = adapt(state, old, new, new_head=False, rule=rule)
        expected = resize_positions(state["positions.table"], (4, 4), (5, 8), has_class_token=True, rule=rule)
        assert torch.equal(adapted["positions.table"], expected)
        assert torch.equal(adapted["head.weight"], state["head.weight"])


def test_two_dimensional_tables_grow_along_their_axes() -> None:
    old, new = small(positions="learned2d"), small(positions="learned2d", image_size=(56, 32))
    state = build(old).state_dict()
    adapted = adapt(state, old, new, new_head=False)
    assert torch.equal(adapted["positions.columns"], state["positions.columns"])
    rows = adapted["positions.rows"]
    assert rows.shape == (1, 7, 8)
    torch.testing.assert_close(rows[:, [0, 2, 4, 6]], state["positions.rows"])
    torch.testing.assert_close(rows[:, 1], state["positions.rows"][:, :2].mean(1))


@pytest.mark.parametrize("name", ["r_vit_ti16", "bit_r26x1"])
def test_hybrids_and_resnets_adapt_too(name: str) -> None:
    options = {"depth": 1} if name == "r_vit_ti16" else {}
    old, new = small(name, image_size=64, **options), small(name, image_size=96, num_classes=2, **options)
    model = build(new)
    load_into(model, adapt(build(old).state_dict(), old, new, new_head=True))
    assert model(torch.zeros(1, 3, 96, 96)).shape == (1, 2)


def test_the_state_is_not_changed_in_place() -> None:
    old, new = small(), small(num_classes=2, image_size=64)
    state = build(old).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    adapt(state, old, new, new_head=True)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], value) for key, value in before.items())


@pytest.mark.parametrize(
    ("old", "new", "new_head", "message"),
    [
        (
            {},
            {"depth": 3, "gelu": "erf"},
            True,
            "depth is 2 in the weights and 3 in the new model; gelu is 'tanh'",
        ),
        ({}, {"representation": True}, True, "set representation to false"),
        (
            {},
            {"num_classes": 6},
            False,
            "the weights have 5 classes, the new model has 6; ask for a new head",
        ),
        ({"representation": True}, {}, False, "only one of weights and new model has the hidden layer"),
        ({"positions": "relative"}, {"positions": "relative", "image_size": 64}, True, "keep the image size"),
    ],
)
def test_what_cannot_be_adapted_is_refused(
    old: dict[str, object], new: dict[str, object], new_head: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapt(build(small(**old)).state_dict(), small(**old), small(**new), new_head=new_head)


def test_a_vit_does_not_become_a_resnet() -> None:
    with pytest.raises(ValueError, match="one is a ViT, the other a ResNet"):
        adapt({}, small(), small("bit_r26x1"), new_head=True)

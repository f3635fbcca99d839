"""Looking inside: hand-made attention gives what one can work out on paper."""

import math

import pytest
import torch
from torch import Tensor

from model import create_model
from model.insight import (
    attention_distance,
    attention_layers,
    patch_filters,
    position_similarity,
    rollout,
    rollout_mask,
)
from model.vit import ViT

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp": 16}


def vit(**options: object) -> ViT:
    model = create_model(
        "vit_ti8",
        num_classes=2,
        image_size=(16, 24),
        generator=torch.Generator().manual_seed(0),
        **{**SMALL, **options},  # type: ignore[arg-type]
    )
    assert isinstance(model, ViT)
    return model.eval()


def images(batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def uniform(model: ViT) -> ViT:
    """Queries of zero: every token attends to all alike."""
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight.zero_()
    return model


@pytest.mark.parametrize(
    "options", [{}, {"pool": "gap"}, {"positions": "relative"}, {"positions_at": "layers"}]
)
def test_layers_are_those_of_the_forward_pass(options: dict[str, object]) -> None:
    model = vit(**options)
    seen: list[Tensor] = []
    handles = [
        block.attention.register_forward_pre_hook(
            lambda module, inputs: seen.append(module.weights(*inputs[:2]))
        )
        for block in model.blocks
    ]
    model(images())
    for handle in handles:
        handle.remove()
    found = list(attention_layers(model, images()))
    assert len(found) == len(seen) == 2
    for one, other in zip(found, seen, strict=True):
        torch.testing.assert_close(one, other)


def test_rollout_multiplies_the_layers_with_the_identity_added() -> None:
    model = vit()
    product = torch.eye(7)
    for weights in attention_layers(model, images()):
        mixed = weights.mean(1) + torch.eye(7)
        product = (mixed / mixed.sum(-1, keepdim=True)) @ product
    torch.testing.assert_close(rollout(model, images()).flatten(1), product[:, 0, 1:])


def test_rollout_of_uniform_attention_is_uniform() -> None:
    # One layer gives each other token (1/7) / 2; two layers 1/14 * (1/2 + 1/14) + 1/14 * 1/2 + 5 * 1/196 +
    # ...
    one = rollout(uniform(vit(depth=1)), images())
    assert one.shape == (3, 2, 3)
    torch.testing.assert_close(one, torch.full((3, 2, 3), 1 / 14))
    two = rollout(uniform(vit(depth=2)), images())
    torch.testing.assert_close(two, torch.full((3, 2, 3), 0.5 / 7 + 0.25 / 7))
    gap = rollout(uniform(vit(depth=1, pool="gap")), images())
    torch.testing.assert_close(gap, torch.full((3, 2, 3), 1 / 6))


def test_masks_span_0_to_1_and_peak_where_the_rollout_does() -> None:
    peaked = torch.full((1, 4, 4), 0.1)
    peaked[0, 1, 2] = 1.0
    mask = rollout_mask(peaked, (32, 32), blur=4)
    assert mask.shape == (1, 32, 32)
    assert (float(mask.min()), float(mask.max())) == (0.0, 1.0)
    row, column = divmod(int(mask.flatten().argmax()), 32)
    assert abs(row - 11.5) <= 1.5
    assert abs(column - 19.5) <= 1.5


def test_distance_of_uniform_attention_is_the_mean_distance_of_patches() -> None:
    model = uniform(vit())
    places = [(8 * row, 8 * column) for row in range(2) for column in range(3)]
    mean = sum(math.dist(a, b) for a in places for b in places) / 6
    expected = mean / 7  # each of 7 tokens gets 1/7, and the class token's share is dropped, not shared out
    found = attention_distance(model, [images(2), images(1)])
    torch.testing.assert_close(found, torch.full((2, 2), expected))
    without_token = attention_distance(uniform(vit(pool="gap")), [images()])
    torch.testing.assert_close(without_token, torch.full((2, 2), mean / 6))


def test_distance_is_a_mean_over_images_however_they_are_batched() -> None:
    model = vit()
    torch.testing.assert_close(
        attention_distance(model, [images(4)]), attention_distance(model, [images(4)[:1], images(4)[1:]])
    )
    with pytest.raises(ValueError, match="no images found to measure attention over"):
        attention_distance(model, [])


def test_filters_are_the_principal_components() -> None:
    model = vit(width=32)
    components, shares = patch_filters(model, 5)
    assert components.shape == (5, 3, 8, 8)
    flat = components.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(5), atol=1e-5, rtol=0)
    weight = model.embedding.patch.weight.detach().flatten(1)
    spread = torch.cov(weight.T)
    torch.testing.assert_close(
        (flat @ spread @ flat.T).diagonal() / spread.trace(), shares, atol=1e-5, rtol=1e-4
    )
    assert (shares[:-1] >= shares[1:]).all()


def test_similarity_is_the_cosine_of_patch_rows() -> None:
    model = vit()
    similarity = position_similarity(model)
    assert similarity.shape == (2, 3, 2, 3)
    table = model.positions.table.detach()[0, 1:]
    expected = torch.cosine_similarity(table[1], table[5], dim=0)
    torch.testing.assert_close(similarity[0, 1, 1, 2], expected)
    torch.testing.assert_close(similarity[1, 1, 1, 1], torch.tensor(1.0))


def test_what_a_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="embeds a stem's output, not pixels"):
        patch_filters(vit(stem=(), patch=2))
    with pytest.raises(ValueError, match="28 components asked for, expected from 1 to 16"):
        patch_filters(vit())
    for options in ({"positions": "none"}, {"positions": "relative"}):
        with pytest.raises(ValueError, match="adds no positions before layer 0"):
            position_similarity(vit(**options))

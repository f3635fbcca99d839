"""Masked patch prediction: the corruption's shares, the targets' colours, and a loss that can be learned."""

import pytest
import torch
from torch.nn import functional as F

from model.config import ViTConfig
from model.flops import count_parameters
from model.masked import (
    COLOURS,
    Corruption,
    MaskedPatchModel,
    backbone_state,
    colour_classes,
    count_masked_parameters,
    cut_patches,
    draw_corruption,
    kept_config,
    patch_accuracies,
    patch_losses,
)
from model.weights.files import load_into
from model.zoo import build, model_config

SMALL = {"width": 32, "depth": 1, "heads": 2, "mlp": 32}


def tiny(**options: object) -> ViTConfig:
    config = model_config("vit_ti8", num_classes=2, image_size=(16, 24), **{**SMALL, **options})  # type: ignore[arg-type]
    assert isinstance(config, ViTConfig)
    return config


def model(target: str = "mean_colour", **options: object) -> MaskedPatchModel:
    built = MaskedPatchModel(tiny(**options), target)  # type: ignore[arg-type]
    built.init_weights(torch.Generator().manual_seed(0))
    return built


def images(batch: int = 4) -> torch.Tensor:
    return torch.rand(batch, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1


def nothing_corrupted(batch: int) -> Corruption:
    none = torch.zeros(batch, 6, dtype=torch.bool)
    return Corruption(none, none, torch.arange(6).expand(batch, -1))


def test_half_of_each_image_is_corrupted_in_shares_of_80_10_10() -> None:
    drawn = draw_corruption(500, 196, torch.Generator().manual_seed(0))
    assert (drawn.corrupted_BN.sum(dim=1) == 98).all()
    swapped = drawn.source_BN != torch.arange(196)
    assert not (swapped & ~drawn.corrupted_BN).any()
    assert not (drawn.masked_BN & ~drawn.corrupted_BN).any()
    assert not (drawn.masked_BN & swapped).any()
    total = drawn.corrupted_BN.sum()
    assert float(drawn.masked_BN.sum() / total) == pytest.approx(0.8, abs=0.01)
    assert float(swapped.sum() / total) == pytest.approx(0.1, abs=0.01)
    assert ((drawn.source_BN >= 0) & (drawn.source_BN < 196)).all()


def test_every_place_is_drawn_alike_and_one_seed_gives_one_draw() -> None:
    drawn = draw_corruption(4000, 6, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.corrupted_BN.float().mean(0), torch.full((6,), 0.5), atol=0.03, rtol=0)
    again = draw_corruption(4000, 6, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.source_BN, again.source_BN)
    assert torch.equal(drawn.corrupted_BN, again.corrupted_BN)


def test_a_colour_is_three_bits_of_red_green_and_blue() -> None:
    image = torch.tensor([[-1.0, 0.0, 0.99]]).view(1, 3, 1, 1).expand(1, 3, 16, 24)
    assert (colour_classes(image, (8, 8)) == 0 * 64 + 4 * 8 + 7).all()
    assert (colour_classes(torch.ones(1, 3, 16, 24), (8, 8)) == COLOURS - 1).all()


def test_classes_follow_the_patches_in_raster_order() -> None:
    x = images(2)
    classes = colour_classes(x, (8, 8))[..., 0]
    patches = cut_patches(x, (8, 8)).view(2, 6, 3, 64)
    level = ((patches.mean(-1) + 1) * 4).floor().long()
    assert torch.equal(classes, level[..., 0] * 64 + level[..., 1] * 8 + level[..., 2])


def test_thumbnail_classes_are_the_patchs_own_sixteen_parts() -> None:
    x = images(1)
    classes = colour_classes(x, (8, 8), 4)
    assert classes.shape == (1, 6, 16)
    inside = x[..., 8:16, 16:24]  # the last patch
    assert torch.equal(classes[0, 5], colour_classes(inside, (2, 2))[0, :, 0])


def test_cut_patches_agrees_with_unfold() -> None:
    x = images(2)
    assert torch.equal(cut_patches(x, (8, 8)), F.unfold(x, 8, stride=8).transpose(1, 2))


def test_without_corruption_it_is_the_backbone() -> None:
    built = model().eval()
    torch.nn.init.normal_(built.prediction_head.weight)
    x = images()
    expected = built.prediction_head(built.backbone.norm(built.backbone.encode(x))[:, 1:])
    torch.testing.assert_close(built(x, nothing_corrupted(4)), expected)


@pytest.mark.parametrize("pool", ["token", "gap"])
def test_masked_places_see_the_mask_and_swapped_ones_another_patch(pool: str) -> None:
    built = model(pool=pool, depth=1).eval()
    torch.nn.init.normal_(built.prediction_head.weight)
    torch.nn.init.normal_(built.mask_token)
    x = images(1)
    drawn = nothing_corrupted(1)
    masked = drawn.corrupted_BN.clone()
    masked[0, 2] = True
    changed = x.clone()
    changed[..., :8, 16:] = 0  # patch 2
    hidden = Corruption(masked, masked, drawn.source_BN)
    torch.testing.assert_close(built(x, hidden), built(changed, hidden))
    assert not torch.allclose(built(x, drawn), built(changed, drawn))
    swapped = drawn.source_BN.clone()
    swapped[0, 2] = 5
    same_as_5 = x.clone()
    same_as_5[..., :8, 16:] = x[..., 8:, 16:]
    torch.testing.assert_close(
        built(x, Corruption(masked, ~masked & masked, swapped)), built(same_as_5, drawn)
    )


@pytest.mark.parametrize("target", ["mean_colour", "thumbnail", "pixels"])
def test_the_loss_counts_corrupted_places_only_and_adds_up(target: str) -> None:
    built = model(target).eval()
    torch.nn.init.normal_(built.prediction_head.weight)
    x = images()
    drawn = draw_corruption(4, 6, torch.Generator().manual_seed(3))
    predictions = built(x, drawn)
    whole = built.loss_sum(predictions, x, drawn)
    each = patch_losses(predictions, x, (8, 8), target)  # type: ignore[arg-type]
    expected = sum(each[i][drawn.corrupted_BN[i]].mean() for i in range(4))
    torch.testing.assert_close(whole, expected)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(
        built.loss_sum(predictions, x, drawn, weight),
        sum(each[i][drawn.corrupted_BN[i]].mean() for i in (0, 2)),
    )


@pytest.mark.parametrize(("target", "side"), [("mean_colour", 1), ("thumbnail", 4)])
def test_accuracy_is_the_share_of_colours_said_right(target: str, side: int) -> None:
    x = images(2)
    classes = colour_classes(x, (8, 8), side)
    said = F.one_hot(classes, COLOURS).float()
    said[0, 1] = F.one_hot((classes[0, 1] + 1) % COLOURS, COLOURS).float()
    found = patch_accuracies(said.flatten(2), x, (8, 8), target)  # type: ignore[arg-type]
    expected = torch.ones(2, 6)
    expected[0, 1] = 0
    assert found is not None
    assert torch.equal(found, expected)
    assert patch_accuracies(said.flatten(2), x, (8, 8), "pixels") is None


def test_what_is_kept_is_a_whole_classifier() -> None:
    built = model(representation=True, positions="sincos2d")
    kept = backbone_state(built.state_dict())
    config = kept_config(built.config)
    plain = build(config)
    load_into(plain, kept)  # every key, or it raises
    x = images()
    expected = built.backbone.norm(built.backbone.encode(x))[:, 0]
    torch.testing.assert_close(plain.features(x), expected)
    assert not plain(x).any(), "a head of zeros"
    parameters = sum(p.numel() for p in built.parameters())
    assert count_masked_parameters(built.config, "mean_colour") == parameters
    assert parameters == count_parameters(config, head=False) + 32 + COLOURS * 33


def test_weights_of_something_else_are_not_kept() -> None:
    state = dict(model().state_dict())
    with pytest.raises(ValueError, match=r"with head.weight, expected mask_token"):
        backbone_state(state | {"head.weight": torch.zeros(1)})
    del state["mask_token"]
    with pytest.raises(ValueError, match="parts missing"):
        backbone_state(state)


@pytest.mark.parametrize("target", ["mean_colour", "thumbnail", "pixels"])
def test_training_lowers_the_loss(target: str) -> None:
    built, x = model(target), images(8)
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        drawn = draw_corruption(8, 6, torch.Generator().manual_seed(step % 3))
        loss = built.loss_sum(built(x, drawn), x, drawn) / 8
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert built.mask_token.grad is not None
    assert built.mask_token.grad.any()


def test_it_recomputes_its_blocks_when_asked_to() -> None:
    built, x = model(), images()
    torch.nn.init.normal_(built.prediction_head.weight)
    drawn = draw_corruption(4, 6, torch.Generator().manual_seed(3))
    runs: list[object] = []
    for block in built.blocks:
        block.register_forward_pre_hook(lambda module, inputs: runs.append(module))
    gradients = []
    for on in (False, True):
        built.set_activation_checkpointing(on)
        built.zero_grad()
        built.loss_sum(built(x, drawn), x, drawn).backward()
        gradients.append(built.backbone.embedding.patch.weight.grad)
    assert len(runs) == 1 + 2
    assert torch.equal(*gradients)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown target of masked patch prediction 'colour'"):
        MaskedPatchModel(tiny(), "colour")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cuts patches into 4x4 parts, found patches of \(2, 8\) pixels"):
        MaskedPatchModel(tiny(patch=(2, 8)), "thumbnail")
    with pytest.raises(ValueError, match="leave attention pooling untrained"):
        model(pool="map")

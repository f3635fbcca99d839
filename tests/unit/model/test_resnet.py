"""BiT ResNets and the standardised convolution; outputs against timm are in tests/numerics."""

import pytest
import torch
from torch.nn import functional as F

from model.config import BiTConfig
from model.plans import same_padding
from model.resnet import StandardisedConv, pad_same
from model.zoo import build


def tiny() -> BiTConfig:
    return BiTConfig(name="tiny", num_classes=3, blocks=(1, 1))


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "padding"),
    [(224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (56, 3, 1, (1, 1)), (7, 3, 2, (1, 1)), (8, 1, 2, (0, 0))],
)
def test_same_padding_is_tensorflows(length: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(length, kernel, stride) == padding


def test_same_padding_gives_as_many_windows_as_strides_fit() -> None:
    for length in range(1, 20):
        padded = pad_same(torch.zeros(1, 1, length, 4), 3, 2)
        assert F.max_pool2d(padded, 3, 2).shape == (1, 1, -(-length // 2), 2)


@pytest.mark.parametrize(("eps", "place"), [(1e-5, "std"), (1e-8, "variance")])
def test_kernels_have_mean_0_and_deviation_1_for_each_output(eps: float, place: str) -> None:
    conv = StandardisedConv(4, 6, 3, 1, eps, place)  # type: ignore[arg-type]
    kernels = conv.standardised()
    torch.testing.assert_close(kernels.mean((1, 2, 3)), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(kernels.std((1, 2, 3), correction=0), torch.ones(6), atol=1e-3, rtol=0)
    scaled = StandardisedConv(4, 6, 3, 1, eps, place)  # type: ignore[arg-type]
    scaled.load_state_dict({"weight": conv.weight * 5 + 3})
    torch.testing.assert_close(scaled.standardised(), kernels, atol=1e-3, rtol=1e-3)


def test_the_two_places_of_epsilon_differ() -> None:
    weight = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    in_std, in_variance = (StandardisedConv(3, 2, 1, 1, 0.5, place) for place in ("std", "variance"))  # type: ignore[arg-type]
    for conv in (in_std, in_variance):
        conv.load_state_dict({"weight": weight})
    deviation = weight.std((1, 2, 3), correction=0, keepdim=True)
    centred = weight - weight.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(in_std.standardised(), centred / (deviation + 0.5))
    torch.testing.assert_close(in_variance.standardised(), centred / (deviation**2 + 0.5).sqrt())


def test_any_image_size_runs_and_features_are_the_mean_over_places() -> None:
    model = build(tiny()).eval()
    assert model(torch.randn(2, 3, 33, 47)).shape == (2, 3)
    assert model.features(torch.randn(2, 3, 33, 47)).shape == (2, 512)
    with pytest.raises(ValueError, match=r"expected \(batch, 3, H, W\)"):
        model(torch.zeros(2, 1, 32, 32))


def test_activation_checkpointing_changes_no_gradient() -> None:
    model = build(tiny())
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for on in (False, True):
        model.set_activation_checkpointing(on)
        model.zero_grad()
        model(images).sum().backward()
        gradients.append(
            [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        )
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

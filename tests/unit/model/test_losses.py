"""Losses: values against PyTorch's own, sums that add up, masked samples that count for nothing."""

import pytest
import torch
from torch.nn import functional as F

from model.losses import loss_sum, mixed_targets, sigmoid_cross_entropy, soft_targets, softmax_cross_entropy

KINDS = ("softmax", "sigmoid")


def example(batch: int = 6, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, classes, generator=generator), torch.randint(
        classes, (batch,), generator=generator
    )


def test_softmax_is_the_sum_of_cross_entropies() -> None:
    logits, targets = example()
    torch.testing.assert_close(
        softmax_cross_entropy(logits, targets), F.cross_entropy(logits, targets, reduction="sum")
    )


def test_sigmoid_sums_over_classes() -> None:
    logits, targets = example()
    probability = logits.sigmoid()
    one_hot = F.one_hot(targets, 5)
    expected = -(one_hot * probability.log() + (1 - one_hot) * (1 - probability).log()).sum()
    torch.testing.assert_close(sigmoid_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_targets_equal_class_numbers(kind: str, smoothing: float) -> None:
    logits, targets = example()
    hard = loss_sum(kind, logits, targets, label_smoothing=smoothing)
    soft = loss_sum(kind, logits, soft_targets(targets, 5), label_smoothing=smoothing)
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_mixes_the_target_with_the_uniform_one(kind: str) -> None:
    logits, targets = example()
    smoothed = soft_targets(targets, 5) * 0.8 + 0.2 / 5
    torch.testing.assert_close(
        loss_sum(kind, logits, targets, label_smoothing=0.2), loss_sum(kind, logits, smoothed)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_parts_add_up_and_weight_zero_counts_for_nothing(kind: str) -> None:
    logits, targets = example()
    weight = torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 1.0])
    whole = loss_sum(kind, logits, targets, weight_B=weight)
    parts = [
        loss_sum(kind, logits[a:b], targets[a:b], weight_B=weight[a:b]) for a, b in ((0, 2), (2, 3), (3, 6))
    ]
    torch.testing.assert_close(whole, torch.stack(parts).sum())
    kept = weight > 0
    torch.testing.assert_close(
        whole, loss_sum(kind, logits[kept], targets[kept], weight_B=weight[kept]), rtol=0, atol=0
    )


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_logits_are_raised_to_float32(kind: str) -> None:
    logits, targets = example()
    loss = loss_sum(kind, logits.bfloat16(), targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sum(kind, logits.bfloat16().float(), targets))


def test_mixed_targets_hold_each_label_with_its_share() -> None:
    mixed = mixed_targets(torch.tensor([0, 2]), torch.tensor([1, 2]), torch.tensor([0.75, 0.5]), 3)
    torch.testing.assert_close(mixed, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("targets", [torch.zeros(4, dtype=torch.long), torch.zeros(6), torch.zeros(6, 4)])
def test_targets_of_another_shape_are_refused(targets: torch.Tensor) -> None:
    logits, _ = example()
    with pytest.raises(ValueError, match=r"targets of shape .* found, expected class numbers \(6,\)"):
        softmax_cross_entropy(logits, targets)


def test_unknown_loss_names_the_nearest() -> None:
    logits, targets = example()
    with pytest.raises(ValueError, match="unknown loss 'sigmod'; did you mean 'sigmoid'"):
        loss_sum("sigmod", logits, targets)  # type: ignore[arg-type]

"""Losses, as sums over samples.

Each function returns the SUM over the batch of weight x loss, not a mean. The caller divides once, by the
weight of the whole batch over all ranks and micro-batches; so parts add up exactly, and a masked sample
(weight 0) changes neither sum nor divisor. Everything is computed in float32, whatever the logits' dtype.

Axes: B samples, K classes. Targets are class numbers (B,) of an integer dtype, or soft targets (B, K) of a
float dtype (mixed labels, multi-hot labels).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from model.checks import check_known

LossKind = Literal["softmax", "sigmoid"]


def loss_sum(
    kind: LossKind,
    logits_BK: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    weight_B: Tensor | None = None,
) -> Tensor:
    """`softmax_cross_entropy` or `sigmoid_cross_entropy`, by name; a scalar in float32."""
    check_known("loss", kind, ("softmax", "sigmoid"))
    function = softmax_cross_entropy if kind == "softmax" else sigmoid_cross_entropy
    return function(logits_BK, targets, label_smoothing=label_smoothing, weight_B=weight_B)


def softmax_cross_entropy(
    logits_BK: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, weight_B: Tensor | None = None
) -> Tensor:
    """Sum over samples of weight x cross-entropy between softmax(logits) and the target distribution.

    `label_smoothing` s replaces a target y by (1 - s) y + s / K. Raises ValueError for targets of another
    shape.
    """
    _check_targets(logits_BK, targets)
    loss_B = F.cross_entropy(
        logits_BK.float(), _float_if_soft(targets), reduction="none", label_smoothing=label_smoothing
    )
    return _weighted_sum(loss_B, weight_B)


def sigmoid_cross_entropy(
    logits_BK: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, weight_B: Tensor | None = None
) -> Tensor:
    """Sum over samples of weight x binary cross-entropy summed over classes.

    The authors' pre-training loss (`sigmoid_xent` of big_vision: summed over classes, then averaged over the
    batch). `label_smoothing` s replaces a target y by (1 - s) y + s / K. Raises ValueError for targets of
    another shape.
    """
    _check_targets(logits_BK, targets)
    targets_BK = soft_targets(targets, logits_BK.shape[1])
    if label_smoothing:
        targets_BK = targets_BK * (1 - label_smoothing) + label_smoothing / logits_BK.shape[1]
    loss_BK = F.binary_cross_entropy_with_logits(logits_BK.float(), targets_BK, reduction="none")
    return _weighted_sum(loss_BK.sum(dim=1), weight_B)


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Targets as a (B, K) float32 distribution: class numbers become one-hot rows, soft targets stay."""
    if targets.ndim == 2:
        return targets.float()
    return F.one_hot(targets.long(), num_classes).float()


def mixed_targets(targets: Tensor, partner: Tensor, share_B: Tensor, num_classes: int) -> Tensor:
    """Soft targets (B, K) of mixed images: `share_B` of the own label, the rest of the partner's."""
    own_BK, other_BK = soft_targets(targets, num_classes), soft_targets(partner, num_classes)
    return torch.lerp(other_BK, own_BK, share_B.float().unsqueeze(1))


def _check_targets(logits_BK: Tensor, targets: Tensor) -> None:
    hard = targets.ndim == 1 and not targets.is_floating_point() and len(targets) == len(logits_BK)
    soft = targets.ndim == 2 and targets.is_floating_point() and targets.shape == logits_BK.shape
    if not (hard or soft):
        batch, classes = logits_BK.shape
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} and dtype {targets.dtype} found, expected class "
            f"numbers ({batch},) of an integer dtype or soft targets ({batch}, {classes}) of a float dtype; "
            "convert them"
        )


def _float_if_soft(targets: Tensor) -> Tensor:
    return targets.float() if targets.ndim == 2 else targets.long()


def _weighted_sum(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    return loss_B.sum() if weight_B is None else (loss_B * weight_B.float()).sum()

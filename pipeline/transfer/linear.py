"""Linear probe: multinomial logistic regression on features, its penalty chosen on held-out rows.

    features of train ──► standardise ──► cut off held out ──► one fit a penalty ──► the best penalty
                                                                                       └─► fit on all of train

Pure functions; nothing here sees a test split. Objective: mean cross-entropy + l2 / 2 · |W|², bias free.
Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_ITERATIONS = 500


@dataclass(frozen=True)
class LinearProbe:
    """Logits are ((x - mean) / deviation) @ weight + bias; `l2` is the penalty that was chosen.

    `tried`: (penalty, top-1 held out, mean cross-entropy held out) of each.
    """

    weight_DK: Tensor
    bias_K: Tensor
    mean_D: Tensor
    deviation_D: Tensor
    l2: float
    tried: tuple[tuple[float, float, float], ...]

    def logits(self, features_ND: Tensor) -> Tensor:
        x_ND = (features_ND.double() - self.mean_D) / self.deviation_D
        return x_ND @ self.weight_DK + self.bias_K


def fit_linear(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, held_out_N: Tensor, penalties: Sequence[float]
) -> LinearProbe:
    """Choose the penalty on the rows of `held_out_N` and fit all rows with it.

    Args:
        held_out_N: bool; these rows choose and play no part in the fits that they judge.
        penalties: the grid; the best accuracy wins, on a tie the lower loss, then the larger penalty.
    """
    kept_N = ~held_out_N
    tried = []
    for l2 in penalties if len(penalties) > 1 else ():
        probe = _fit(features_ND[kept_N], labels_N[kept_N], num_classes, l2)
        logits = probe.logits(features_ND[held_out_N])
        top1 = (logits.argmax(1) == labels_N[held_out_N]).double().mean().item()
        tried.append((l2, top1, F.cross_entropy(logits, labels_N[held_out_N]).item()))
    best = min(tried, key=lambda row: (-row[1], row[2], -row[0]))[0] if tried else penalties[0]
    final = _fit(features_ND, labels_N, num_classes, best)
    return LinearProbe(final.weight_DK, final.bias_K, final.mean_D, final.deviation_D, best, tuple(tried))


def _fit(features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float) -> LinearProbe:
    """The minimum, by L-BFGS in float64 from zero: the objective is convex, so the start plays no part."""
    x_ND = features_ND.double()
    mean_D = x_ND.mean(0)
    # A feature that never changes says nothing; dividing by its zero would say something.
    deviation_D = x_ND.std(0, correction=0).clamp_min(1e-5)
    x_ND = (x_ND - mean_D) / deviation_D
    weight_DK = x_ND.new_zeros(x_ND.shape[1], num_classes, requires_grad=True)
    bias_K = x_ND.new_zeros(num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight_DK, bias_K],
        max_iter=_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x_ND @ weight_DK + bias_K, labels_N) + l2 / 2 * weight_DK.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[no-untyped-call]
    return LinearProbe(weight_DK.detach(), bias_K.detach(), mean_D, deviation_D, l2, ())

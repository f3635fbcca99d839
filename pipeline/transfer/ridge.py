"""Few-shot linear evaluation: ridge regression to ±1 targets, in closed form, on frozen features.

To the letter of big_vision's evaluators/fewshot_lsr.py, which the ViT paper's section 4.1 describes:

    features ──► standardised by the few-shot rows alone ──► a constant 100 beside them, the bias
             ──► W = (XᵀX + l2·I)⁻¹ XᵀY, or Xᵀ(XXᵀ + l2·I)⁻¹ Y with fewer rows than columns ──► argmax

Pure functions; nothing here sees a test split but to score it. Axes: N rows, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

L2 = 1024.0  # big_vision's, configs/common_fewshot.py; the paper prints none
SHOTS, SEEDS = (1, 5, 10, 25), (0, 1, 2)
_BIAS = 100.0  # so large that the penalty hardly acts on its weight
_LEAST_DEVIATION = 1e-5  # added, not a floor


@dataclass(frozen=True)
class Ridge:
    """Scores are [(x - mean) / deviation, 100] @ weight: no probabilities. float64."""

    weight_DK: Tensor  # (D + 1, K)
    mean_D: Tensor
    deviation_D: Tensor

    def scores(self, features_ND: Tensor) -> Tensor:
        """(N, K); the largest of a row names its class."""
        return _beside_bias((features_ND.double() - self.mean_D) / self.deviation_D) @ self.weight_DK

    def predict(self, features_ND: Tensor) -> Tensor:
        """int64 (N,)."""
        return self.scores(features_ND).argmax(1)


def fit(features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float = L2) -> Ridge:
    """The minimum of |XW - Y|² + l2·|W|², with Y +1 for a row's class and -1 for all others."""
    x_ND = features_ND.double()
    mean_D = x_ND.mean(0)
    deviation_D = x_ND.std(0, correction=0) + _LEAST_DEVIATION
    x_ND = _beside_bias((x_ND - mean_D) / deviation_D)
    y_NK = 2.0 * torch.nn.functional.one_hot(labels_N.long(), num_classes).double() - 1.0
    # One symmetric eigendecomposition, of the smaller of the two products.
    if len(x_ND) >= x_ND.shape[1]:
        eigenvalues, q = torch.linalg.eigh(x_ND.T @ x_ND)
        left, right = q, q.T @ (x_ND.T @ y_NK)
    else:
        eigenvalues, q = torch.linalg.eigh(x_ND @ x_ND.T)
        left, right = x_ND.T @ q, q.T @ y_NK
    return Ridge((left / (eigenvalues + l2)) @ right, mean_D, deviation_D)


def fit_and_score(
    train_features_ND: Tensor,
    train_labels_N: Tensor,
    test_features_MD: Tensor,
    test_labels_M: Tensor,
    num_classes: int,
    l2: float = L2,
) -> float:
    """Share of test rows that the ridge of all train rows names rightly."""
    predicted = fit(train_features_ND, train_labels_N, num_classes, l2).predict(test_features_MD)
    return float((predicted == test_labels_M).double().mean())


def draw_shots(labels_N: NDArray[np.int64], num_classes: int, shots: int, seed: int) -> NDArray[np.int64]:
    """Rows of the first `shots` of each class in a permutation; fewer where a class has fewer.

    One generator walks the classes in order, so the rows of fewer shots are among those of more.
    """
    chance = np.random.default_rng(seed)
    by_class = [chance.permutation(np.flatnonzero(labels_N == c))[:shots] for c in range(num_classes)]
    return np.concatenate(by_class)


def few_shot(
    train_features_ND: Tensor,
    train_labels_N: Tensor,
    test_features_MD: Tensor,
    test_labels_M: Tensor,
    num_classes: int,
    *,
    shots: int,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> list[float]:
    """Accuracy on all test rows with `shots` of the train rows of each class, one figure a seed."""
    found = []
    for seed in seeds:
        rows = torch.from_numpy(draw_shots(train_labels_N.numpy(), num_classes, shots, seed))
        few = train_features_ND[rows], train_labels_N[rows]
        found.append(fit_and_score(*few, test_features_MD, test_labels_M, num_classes, l2))
    return found


def _beside_bias(x_ND: Tensor) -> Tensor:
    return torch.nn.functional.pad(x_ND, (0, 1), value=_BIAS)

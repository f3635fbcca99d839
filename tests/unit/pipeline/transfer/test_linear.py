"""The linear probe: the optimum against scikit-learn's, and what its penalty is chosen on."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from pipeline.transfer.linear import fit_linear


def blobs(n: int, seed: int = 0, classes: int = 3, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features float32 (n, 6) around one centre a class, and labels."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, 6))
    labels = random.integers(0, classes, n)
    features = centres[labels] + spread * random.normal(size=(n, 6))
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def test_the_optimum_is_that_of_scikit_learn() -> None:
    features, labels = blobs(200)
    l2 = 1e-2
    ours = fit_linear(features, labels, 3, torch.zeros(200, dtype=torch.bool), [l2])
    x = ((features.double() - ours.mean_D) / ours.deviation_D).numpy()
    # Its penalty is on the sum of losses: |W|² / 2 + C · sum, so C = 1 / (n · l2).
    theirs = LogisticRegression(C=1 / (200 * l2), tol=1e-10, max_iter=5000).fit(x, labels.numpy())
    expected = torch.from_numpy(theirs.predict_log_proba(x))
    assert torch.allclose(ours.logits(features).log_softmax(1), expected, atol=1e-4)


def test_the_penalty_is_chosen_on_the_rows_held_out_and_only_there() -> None:
    features, labels = blobs(60, spread=2.5)
    held = torch.arange(60) % 3 == 0
    grid = [1e-6, 1e-2, 1.0, 100.0]
    probe = fit_linear(features, labels, 3, held, grid)
    scores = {}
    for l2 in grid:
        alone = fit_linear(features[~held], labels[~held], 3, torch.zeros(40, dtype=torch.bool), [l2])
        scores[l2] = float((alone.logits(features[held]).argmax(1) == labels[held]).double().mean())
    assert {l2: top1 for l2, top1, _ in probe.tried} == scores
    assert scores[probe.l2] == max(scores.values()) > min(scores.values())


def test_all_rows_are_fitted_with_the_penalty_that_was_chosen() -> None:
    features, labels = blobs(60, spread=2.5)
    held = torch.arange(60) % 3 == 0
    chosen = fit_linear(features, labels, 3, held, [1e-2, 1.0])
    whole = fit_linear(features, labels, 3, torch.zeros(60, dtype=torch.bool), [chosen.l2])
    assert torch.equal(chosen.weight_DK, whole.weight_DK)


def test_a_constant_feature_is_no_division_by_zero() -> None:
    features, labels = blobs(50)
    features[:, 2] = 7.0
    probe = fit_linear(features, labels, 3, torch.zeros(50, dtype=torch.bool), [1e-3])
    assert torch.isfinite(probe.logits(features)).all()

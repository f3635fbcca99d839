"""Few-shot ridge regression, against other ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.transfer.ridge import draw_shots, few_shot, fit, fit_and_score

CLASSES = 4


def blobs(rows: int, features: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around one centre a class; features of very different sizes, one that never changes."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, features, generator=torch.Generator().manual_seed(0))
    x = centres[labels] + 0.6 * torch.randn(rows, features, generator=chance)
    x = x * torch.logspace(-3, 3, features) + 5
    x[:, 0] = 7.0
    return x, labels


@pytest.mark.parametrize("rows", [12, 200], ids=["fewer rows than columns", "more"])
def test_it_is_the_solution_of_the_normal_equations(rows: int) -> None:
    x, y = blobs(rows, 30, seed=1)
    found = fit(x, y, CLASSES, l2=1024.0)

    wide = x.double().numpy()
    wide = (wide - wide.mean(0)) / (wide.std(0) + 1e-5)
    wide = np.concatenate([wide, np.full((rows, 1), 100.0)], axis=1)
    targets = np.where(np.arange(CLASSES) == y.numpy()[:, None], 1.0, -1.0)
    expected = np.linalg.solve(wide.T @ wide + 1024.0 * np.eye(31), wide.T @ targets)
    np.testing.assert_allclose(found.weight_DK.numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.scores(x).numpy(), wide @ expected, rtol=1e-6, atol=1e-9)


def test_it_standardises_by_the_training_rows_alone() -> None:
    x, y = blobs(40, 10, seed=1)
    other, labels = blobs(80, 10, seed=2)
    accuracy = fit_and_score(x, y, other, labels, CLASSES)
    half = fit_and_score(x, y, other[:40], labels[:40], CLASSES)
    rest = fit_and_score(x, y, other[40:], labels[40:], CLASSES)
    assert accuracy == pytest.approx((half + rest) / 2)  # a test row's score does not hang on the others
    assert 0.5 < accuracy <= 1.0
    assert fit_and_score(x, y, other, (labels + 1) % CLASSES, CLASSES) < 0.3


def test_shots_are_drawn_as_published() -> None:
    labels = np.array([2, 0, 1, 0, 2, 0, 0, 1, 2, 2], dtype=np.int64)
    chance = np.random.default_rng(1)
    expected = [chance.permutation(np.flatnonzero(labels == c)) for c in range(3)]
    for shots in (1, 2, 4):
        rows = draw_shots(labels, 3, shots, seed=1)
        assert rows.tolist() == [row for drawn in expected for row in drawn[:shots]]
    assert set(draw_shots(labels, 3, 1, 0)) <= set(draw_shots(labels, 3, 3, 0))
    assert any((draw_shots(labels, 3, 2, 0) != draw_shots(labels, 3, 2, s)).any() for s in (1, 2))


def test_more_shots_know_more() -> None:
    x, y = blobs(400, 20, seed=3)
    test = blobs(400, 20, seed=4)
    few, many = (few_shot(x, y, *test, CLASSES, shots=shots) for shots in (1, 25))
    assert len(few) == 3
    assert len(set(few)) > 1, "the seeds draw the same rows"
    assert np.mean(many) > np.mean(few)

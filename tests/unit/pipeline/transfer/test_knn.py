"""Nearest neighbours, against a loop over images."""

from __future__ import annotations

import pytest
import torch

from pipeline.transfer import knn


def slow_votes(
    train: torch.Tensor, labels: list[int], query: torch.Tensor, classes: int, k: int, temperature: float
) -> list[float]:
    similarities = [torch.cosine_similarity(query, row, dim=0).item() for row in train]
    nearest = sorted(range(len(labels)), key=lambda i: -similarities[i])[:k]
    found = [0.0] * classes
    for i in nearest:
        found[labels[i]] += torch.tensor(similarities[i] / temperature, dtype=torch.float64).exp().item()
    return [vote / sum(found) for vote in found]


@pytest.mark.parametrize("neighbours", [1, 5, 100])
@pytest.mark.parametrize("block", [2**24, 90])
def test_each_image_is_judged_as_by_hand(
    neighbours: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "_BLOCK", block)
    chance = torch.Generator().manual_seed(0)
    train, test = torch.randn(30, 8, generator=chance) + 0.5, torch.randn(11, 8, generator=chance) + 0.5
    labels = torch.randint(3, (30,), generator=chance)
    found = knn.votes(train, labels, test, 3, neighbours=neighbours, temperature=0.2)
    for row, query in zip(found, test, strict=True):
        expected = slow_votes(train, labels.tolist(), query, 3, neighbours, 0.2)
        assert row.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_length_of_a_feature_plays_no_part_and_cold_votes_stay_finite() -> None:
    train, labels = torch.eye(4), torch.arange(4)
    bank = train * torch.tensor([[1.0], [9.0], [0.1], [5.0]])
    assert knn.votes(bank, labels, 3 * train, 4).argmax(1).tolist() == [0, 1, 2, 3]
    assert torch.isfinite(knn.votes(train, labels, train, 4, temperature=1e-4)).all()

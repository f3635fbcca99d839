"""Nearest neighbours on frozen features: a weighted vote of the most similar training images.

Similarity is the cosine; a neighbour's vote weighs exp(similarity / temperature), as in Wu et al. (2018,
arXiv 1805.01978, section 3.4) and DINO (eval_knn.py), with their 0.07.
Axes: N train rows, M test rows, D features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, TEMPERATURE = 20, 0.07
_BLOCK = 2**24  # similarities held at once: 64 MiB of float32


def votes(
    train_features_ND: Tensor,
    train_labels_N: Tensor,
    test_features_MD: Tensor,
    num_classes: int,
    *,
    neighbours: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Share of the weighted votes that each class gets, float32 (M, K); a row adds up to 1.

    With fewer train rows than `neighbours` all of them vote.
    """
    bank = F.normalize(train_features_ND.float(), dim=1).T
    queries = F.normalize(test_features_MD.float(), dim=1)
    labels, k = train_labels_N.long(), min(neighbours, len(train_labels_N))
    parts = []
    for block in torch.split(queries, max(1, _BLOCK // len(labels))):
        similarity, nearest = (block @ bank).topk(k, dim=1)
        # A softmax gives the same shares as exp and a division, without overflow at low temperatures.
        weight = (similarity / temperature).softmax(dim=1)
        shares = weight.new_zeros(len(block), num_classes)
        parts.append(shares.scatter_add_(1, labels[nearest], weight))
    return torch.cat(parts)

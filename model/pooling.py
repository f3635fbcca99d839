"""Attention pooling: one learned query looks at all tokens (the MAP head of big_vision, models/vit.py).

Axes: B batch, T tokens, D width, h heads, d features of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ViTConfig


class AttentionPool(nn.Module):
    """probe -> cross-attention -> x + MLP(norm(x)), without dropout."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.attention = CrossAttention(config.width, config.heads)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = nn.ModuleDict(
            {"up": nn.Linear(config.width, config.mlp), "down": nn.Linear(config.mlp, config.width)}
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """One vector an image, (B, D), from tokens (B, T, D)."""
        y_B1D = self.attention(self.probe.to(x_BTD.dtype).expand(len(x_BTD), -1, -1), x_BTD)
        hidden = F.gelu(self.mlp["up"](self.norm(y_B1D)), approximate=self.approximate)
        pooled_BD: Tensor = (y_B1D + self.mlp["down"](hidden)).squeeze(1)
        return pooled_BD


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BQD: Tensor, x_BTD: Tensor) -> Tensor:
        """(B, Q, D) from queries (B, Q, D) and tokens (B, T, D)."""
        q_BhQd = self.query(query_BQD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_BhTd, v_BhTd = (
            self.key_value(x_BTD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        y_BhQd = F.scaled_dot_product_attention(q_BhQd, k_BhTd, v_BhTd)
        pooled_BQD: Tensor = self.out(y_BhQd.transpose(1, 2).flatten(2))
        return pooled_BQD

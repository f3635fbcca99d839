"""The Vision Transformer on one page: patches to tokens, blocks of attention and MLP, pooling, head.

Source: "An Image is Worth 16x16 Words" (arXiv 2010.11929), Equations 1 to 4, with the conventions of the
authors' code (layer norm before each branch and before pooling, GELU by tanh, dropout after positions,
attention output, GELU and second MLP layer). A convolutional stem (model/stem.py) may stand before the
patches.

Axes: B batch, C channels, H and W pixels, T tokens (class token first), D width, M hidden features of the
MLP, h heads, d = D / h features of a head, R = 2T - 1 position offsets, K classes. Dropout draws from torch's
global generator.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ViTConfig
from model.interface import ImageModel, check_images
from model.plans import stem_channels
from model.pooling import AttentionPool
from model.positions import Positions, RelativeOffsets
from model.stem import Stem


class ViT(ImageModel):
    """A Vision Transformer; see `ViTConfig` for every choice."""

    config: ViTConfig

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = None if config.stem is None else Stem(config)
        self.embedding = Embedding(config)
        self.positions = Positions(config)
        self.offsets = RelativeOffsets(config) if config.positions == "relative" else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.pool = AttentionPool(config) if config.pool == "map" else None
        self.pre_logits = nn.Linear(config.width, config.width) if config.representation else None
        self.head = nn.Linear(config.width, config.num_classes)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """The representation the head reads, (B, D), after the hidden tanh layer where there is one."""
        x_BTD = self.encode_tokens(self.tokens(x_BCHW), first_only=self.config.has_class_token)
        x_BD = self.pooled(self.norm(x_BTD))
        return x_BD if self.pre_logits is None else torch.tanh(self.pre_logits(x_BD))

    def encode(self, x_BCHW: Tensor) -> Tensor:
        """Tokens after the last block, (B, T, D), before the final layer norm."""
        return self.encode_tokens(self.tokens(x_BCHW))

    def encode_tokens(self, x_BTD: Tensor, first_only: bool = False) -> Tensor:
        """The blocks, positions included, over tokens as `tokens` gives them; (B, T, D).

        `first_only` gives the class token alone, (B, 1, D): the last block then leaves out what nobody reads,
        which saves its MLP and output projection for all other tokens (6 % of a model of 12 blocks) and
        changes no value.
        """
        for layer, block in enumerate(self.blocks):
            last = first_only and layer == len(self.blocks) - 1
            x_BTD = self.run_block(block, self.positioned(x_BTD, layer), self.offsets_of(layer), last)
        return x_BTD

    def tokens(self, x_BCHW: Tensor) -> Tensor:
        """Embedded patches with the class token in front, (B, T, D), before any position is added."""
        check_images(x_BCHW, self.config.image_size)
        if self.stem is not None:
            x_BCHW = self.stem.root(x_BCHW)
            for unit in self.stem.blocks:
                x_BCHW = self.run_block(unit, x_BCHW)
        x_BTD: Tensor = self.embedding(x_BCHW)
        return x_BTD

    def positioned(self, x_BTD: Tensor, layer: int) -> Tensor:
        """Tokens as they enter `layer`: positions added where they are due, then the stem's dropout."""
        if self.positions.acts_at(layer):
            x_BTD = self.positions(x_BTD, layer)
        if layer == 0 and self.config.dropout:
            x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        return x_BTD

    def offsets_of(self, layer: int) -> Tensor | None:
        """Keys of the relative positions for `layer`, (R, D), or None."""
        return None if self.offsets is None else self.offsets(layer)

    def pooled(self, x_BTD: Tensor) -> Tensor:
        """One vector an image, (B, D), from normalised tokens: class token, mean, or attention pooling."""
        if self.pool is not None:
            pooled_BD: Tensor = self.pool(x_BTD)
            return pooled_BD
        return x_BTD[:, 0] if self.config.has_class_token else x_BTD.mean(dim=1)


class Embedding(nn.Module):
    """Patches to tokens: one linear map of each patch (Equation 1), class token in front."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(stem_channels(config), config.width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.has_class_token else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Tokens (B, T, D) of images or of the stem's output (B, C, H, W)."""
        x_BND: Tensor = self.patch(x_BCHW).flatten(2).transpose(1, 2)
        if self.class_token is None:
            return x_BND
        return torch.cat([self.class_token.to(x_BND.dtype).expand(len(x_BND), -1, -1), x_BND], dim=1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) (Equations 2 and 3)."""

    def __init__(self, config: ViTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = config.dropout
        self.drop_rate = config.stochastic_depth * layer / max(config.depth - 1, 1)

    def forward(self, x_BTD: Tensor, offsets_RD: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Tokens in, tokens out, (B, T, D), or the first one of each image, (B, 1, D), if nobody needs more.

        `offsets_RD` are the keys of relative positions, if used.
        """
        attended_BTD = self._branch(self.attention(self.norm1(x_BTD), offsets_RD, first_only))
        x_BTD = (x_BTD[:, :1] if first_only else x_BTD) + attended_BTD
        return x_BTD + self._branch(self.mlp(self.norm2(x_BTD)))

    def _branch(self, x_BTD: Tensor) -> Tensor:
        if not self.training:
            return x_BTD
        if self.dropout:
            x_BTD = F.dropout(x_BTD, self.dropout)
        return drop_branch(x_BTD, self.drop_rate) if self.drop_rate else x_BTD


class Attention(nn.Module):
    """Multi-head self-attention with biases everywhere and scale 1 / sqrt(d)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = head_norm(config) if config.qk_norm else None
        self.k_norm = head_norm(config) if config.qk_norm else None
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x_BTD: Tensor, offsets_RD: Tensor | None = None, first_only: bool = False) -> Tensor:
        """Attended tokens, (B, T, D), or the first one of each image, (B, 1, D)."""
        q_BhTd, k_BhTd, v_BhTd = self._split(x_BTD)
        if first_only:
            q_BhTd = q_BhTd[:, :, :1]
        bias = None if offsets_RD is None else relative_logits(q_BhTd, offsets_RD)
        y_BhTd = F.scaled_dot_product_attention(q_BhTd, k_BhTd, v_BhTd, attn_mask=bias)
        attended_BTD: Tensor = self.out(y_BhTd.transpose(1, 2).flatten(2))
        return attended_BTD

    def weights(self, x_BTD: Tensor, offsets_RD: Tensor | None = None) -> Tensor:
        """The softmax of the logits, (B, h, T, T), rows are queries: for looking at, not for training."""
        q_BhTd, k_BhTd, _ = self._split(x_BTD)
        logits_BhTT = q_BhTd @ k_BhTd.transpose(-1, -2) / math.sqrt(q_BhTd.shape[-1])
        if offsets_RD is not None:
            logits_BhTT = logits_BhTT + relative_logits(q_BhTd, offsets_RD)
        return logits_BhTT.softmax(dim=-1)

    def _split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        qkv_3BhTd = self.qkv(x_BTD).view(*x_BTD.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q_BhTd, k_BhTd, v_BhTd = qkv_3BhTd.unbind(0)
        if self.q_norm is not None and self.k_norm is not None:
            q_BhTd, k_BhTd = self.q_norm(q_BhTd).to(v_BhTd.dtype), self.k_norm(k_BhTd).to(v_BhTd.dtype)
        return q_BhTd, k_BhTd, v_BhTd


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp)
        self.down = nn.Linear(config.mlp, config.width)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.dropout = config.dropout

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D); dropout after the GELU, the one after the second layer is the block's."""
        x_BTM = F.gelu(self.up(x_BTD), approximate=self.approximate)
        if self.dropout:
            x_BTM = F.dropout(x_BTM, self.dropout, self.training)
        y_BTD: Tensor = self.down(x_BTM)
        return y_BTD


def head_norm(config: ViTConfig) -> nn.LayerNorm:
    """Layer norm over the features of one head."""
    return nn.LayerNorm(config.width // config.heads, eps=config.norm_eps)


def relative_logits(q_BhTd: Tensor, offsets_RD: Tensor) -> Tensor:
    """Scaled products of each query with the key of its offset to each token, (B, h, T, T).

    Queries are those of the first tokens, all or fewer.
    """
    heads, queries, features = q_BhTd.shape[1:]
    tokens = (len(offsets_RD) + 1) // 2
    keys_hdR = offsets_RD.to(q_BhTd.dtype).view(-1, heads, features).permute(1, 2, 0)
    logits_BhTR = q_BhTd @ keys_hdR / math.sqrt(features)
    place_T = torch.arange(tokens, device=q_BhTd.device)
    offset_TT = place_T[:queries, None] - place_T + tokens - 1
    logits_BhTT: Tensor = logits_BhTR.gather(-1, offset_TT.expand(*logits_BhTR.shape[:2], -1, -1))
    return logits_BhTT


def drop_branch(x_BTD: Tensor, rate: float) -> Tensor:
    """Zero a sample's whole branch with probability `rate`, scale the others to keep the mean."""
    keep_B11 = x_BTD.new_empty(len(x_BTD), 1, 1).bernoulli_(1 - rate)
    return x_BTD * (keep_B11 / (1 - rate))

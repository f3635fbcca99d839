"""Position embeddings: what a Vision Transformer adds to its tokens, and resizing to another grid.

Kinds (paper, Appendix D.4): one learned row a token in raster order ("learned"), half the features from the
row and half from the column ("learned2d"), fixed sines and cosines of both ("sincos2d", MoCo v3 and
big_vision) and learned offsets that act inside the attention ("relative"). They come in at the stem, or
before every layer with own or shared tables.

Axes: B batch, T tokens (class token first, then patches in raster order), N patches, D width, L tables (one,
or one a layer), R = 2T - 1 offsets, H and W rows and columns of the grid.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checks import check_known
from model.config import ViTConfig

TEMPERATURE = 10_000.0  # wavelengths of "sincos2d" rise from 2 pi to 2 pi times this

# Each source's own rule, as arguments of `torch.nn.functional.interpolate`. They differ by 26 to 42 % on
# white noise, so the rule is part of a recipe. The first equals scipy.ndimage.zoom of order 1, which the
# authors use.
RESIZE_RULES: Mapping[str, Mapping[str, Any]] = {
    "align_corners_bilinear": {"mode": "bilinear", "align_corners": True},  # the authors' two code bases
    "bilinear": {"mode": "bilinear", "align_corners": False},  # timm, reading npz
    "bicubic_antialias": {
        "mode": "bicubic",
        "align_corners": False,
        "antialias": True,
    },  # timm, its own files
    "align_corners_bicubic": {"mode": "bicubic", "align_corners": True},  # torchvision
    "bicubic": {"mode": "bicubic", "align_corners": False},  # Hugging Face
}


class Positions(nn.Module):
    """Adds position embeddings to tokens: once, or before every layer, as the configuration says."""

    fixed_TD: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.kind = config.positions
        self.has_class_token = config.has_class_token
        self.grid = config.grid
        self.width = config.width
        self.tables = tables = config.depth if config.positions_at == "layers" else 1
        self.every_layer = config.positions_at != "stem"
        if self.kind == "learned":
            self.table = nn.Parameter(torch.empty(tables, config.num_tokens, config.width))
        elif self.kind == "learned2d":
            rows, columns = config.grid
            self.rows = nn.Parameter(torch.empty(tables, rows, config.width // 2))
            self.columns = nn.Parameter(torch.empty(tables, columns, config.width // 2))
        elif self.kind == "sincos2d":
            table_TD = torch.empty(config.num_tokens, config.width)
            self.register_buffer("fixed_TD", table_TD, persistent=False)
            self.fill_fixed()

    def acts_at(self, layer: int) -> bool:
        """Whether `forward` changes the tokens before this layer."""
        return self.kind not in ("none", "relative") and (layer == 0 or self.every_layer)

    def forward(self, x_BTD: Tensor, layer: int) -> Tensor:
        """Tokens with their positions added; (B, T, D), the same dtype."""
        return x_BTD + self.added(layer).to(x_BTD.dtype)

    def added(self, layer: int) -> Tensor:
        """What is added before `layer`, (T, D); zero for the class token in the two-dimensional kinds."""
        table = layer if self.tables > 1 else 0
        if self.kind == "learned":
            return self.table[table]
        if self.kind == "sincos2d":
            return self.fixed_TD
        rows_H1D = self.rows[table].unsqueeze(1).expand(-1, self.grid[1], -1)
        columns_1WD = self.columns[table].unsqueeze(0).expand(self.grid[0], -1, -1)
        patches_ND = torch.cat([columns_1WD, rows_H1D], dim=-1).flatten(0, 1)
        return F.pad(patches_ND, (0, 0, int(self.has_class_token), 0))

    def fill_fixed(self) -> None:
        """Compute the fixed table; `init_weights` does so again, because `to_empty` forgets buffers."""
        if self.kind == "sincos2d" and not self.fixed_TD.is_meta:
            table_ND = sincos_table(self.grid, self.width).to(self.fixed_TD.device)
            self.fixed_TD.copy_(F.pad(table_ND, (0, 0, int(self.has_class_token), 0)))


class RelativeOffsets(nn.Module):
    """One-dimensional relative positions: a learned key for each offset p_query - p_key.

    The paper (Appendix D.4) runs an extra attention of the queries over these keys and adds its logits to the
    content's. Tokens are numbered in raster order with the class token first; whether the authors' heads
    share keys is not printed, here each head has its own D / heads features, as the content keys have.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        tables = config.depth if config.positions_at == "layers" else 1
        self.table = nn.Parameter(torch.empty(tables, 2 * config.num_tokens - 1, config.width))

    def forward(self, layer: int) -> Tensor:
        """The offset keys of `layer`, (R, D)."""
        return self.table[layer if len(self.table) > 1 else 0]


def sincos_table(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed two-dimensional table, (N, D) float32: [sin x, cos x, sin y, cos y], D/4 frequencies each.

    Source: `posemb_sincos_2d` of big_vision (after MoCo v3). D must be a multiple of 4.
    """
    frequencies = TEMPERATURE ** -(torch.arange(width // 4, dtype=torch.float64) / max(width // 4 - 1, 1))
    rows, columns = grid
    y_NF = torch.arange(rows).repeat_interleave(columns)[:, None] * frequencies
    x_NF = torch.arange(columns).repeat(rows)[:, None] * frequencies
    return torch.cat([x_NF.sin(), x_NF.cos(), y_NF.sin(), y_NF.cos()], dim=1).float()


def resize_positions(
    table: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    has_class_token: bool,
    rule: str = "align_corners_bilinear",
) -> Tensor:
    """A learned position table for another grid: (..., T, D) in, (..., T', D) out, the same dtype.

    A leading class-token row is carried over untouched. Grids are (rows, columns) and need not be square.
    `rule` is one of `RESIZE_RULES`. Raises ValueError for an unknown rule or a table that does not have the
    old grid's rows.
    """
    check_known("resize rule", rule, RESIZE_RULES)
    extra = int(has_class_token)
    expected = old_grid[0] * old_grid[1] + extra
    if table.shape[-2] != expected:
        raise ValueError(
            f"position table has {table.shape[-2]} rows, expected {expected} for a grid of "
            f"{old_grid[0]}x{old_grid[1]}{' and a class token' if extra else ''}; give the resolution it was "
            "trained at"
        )
    if old_grid == new_grid:
        return table
    lead, width = table.shape[:-2], table.shape[-1]
    patches_LND = table[..., extra:, :].reshape(-1, expected - extra, width)
    image_LDHW = patches_LND.transpose(1, 2).reshape(-1, width, *old_grid).float()
    resized_LDHW = F.interpolate(image_LDHW, size=new_grid, **RESIZE_RULES[rule])
    patches = resized_LDHW.flatten(2).transpose(1, 2).reshape(*lead, -1, width).to(table.dtype)
    return torch.cat([table[..., :extra, :], patches], dim=-2)

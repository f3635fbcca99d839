"""The layout of torchvision's VisionTransformer: class token, exact GELU, epsilon 1e-6."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig
from model.weights.layout import Entry, Facts, Room, as_vit, count_parts, linear, same

NAME = "torchvision"
RESIZE_RULE = "align_corners_bicubic"  # of this library's position tables
VIT_CONVENTIONS: Mapping[str, Any] = {"gelu": "erf", "norm_eps": 1e-6}
BIT_CONVENTIONS: Mapping[str, Any] = {}
ROOM = Room(NAME, representation=True)
LAYER = "encoder.layers.encoder_layer_"
OLD_MLP = {"linear_1": "0", "linear_2": "3"}  # names of files written before torchvision 0.13


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are torchvision's names."""
    return "conv_proj.weight" in tensors and "encoder.pos_embedding" in tensors


def normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `entries`: those of old files are renamed."""
    return {re.sub(r"mlp\.(linear_[12])\.", _new_mlp, key): value for key, value in tensors.items()}


def _new_mlp(match: re.Match[str]) -> str:
    return f"mlp.{OLD_MLP[match[1]]}."


def entries(config: ModelConfig) -> list[Entry]:
    """Where each of our parameters is; raises ValueError for a model this layout has no place for."""
    config = as_vit(config, NAME)
    ROOM.check(config)
    d, m, (rows, columns) = config.width, config.mlp, config.patch
    found = [
        same("embedding.patch.weight", "conv_proj.weight", (d, 3, rows, columns)),
        same("embedding.patch.bias", "conv_proj.bias", (d,)),
        same("embedding.class_token", "class_token", (1, 1, d)),
        same("positions.table", "encoder.pos_embedding", (1, config.num_tokens, d)),
    ]
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"{LAYER}{layer}"
        found += linear(f"{ours}.norm1", f"{theirs}.ln_1", d)
        found += [same(f"{ours}.attention.qkv.weight", f"{theirs}.self_attention.in_proj_weight", (3 * d, d))]
        found += [same(f"{ours}.attention.qkv.bias", f"{theirs}.self_attention.in_proj_bias", (3 * d,))]
        found += linear(f"{ours}.attention.out", f"{theirs}.self_attention.out_proj", d, d)
        found += linear(f"{ours}.norm2", f"{theirs}.ln_2", d)
        found += linear(f"{ours}.mlp.up", f"{theirs}.mlp.0", m, d)
        found += linear(f"{ours}.mlp.down", f"{theirs}.mlp.3", d, m)
    found += linear("norm", "encoder.ln", d)
    if config.representation:
        found += linear("pre_logits", "heads.pre_logits", d, d)
    return [*found, *linear("head", "heads.head", config.num_classes, d)]


def facts(tensors: Mapping[str, Tensor]) -> Facts:
    """What the tensors tell about their model."""
    patch, head = tensors["conv_proj.weight"].shape, tensors.get("heads.head.weight")
    up = tensors.get(f"{LAYER}0.mlp.0.weight")
    return Facts(
        width=patch[0],
        depth=count_parts(tensors, LAYER),
        mlp=0 if up is None else up.shape[0],
        patch=(patch[2], patch[3]),
        tokens=tensors["encoder.pos_embedding"].shape[1],
        representation="heads.pre_logits.weight" in tensors,
        num_classes=None if head is None else head.shape[0],
    )

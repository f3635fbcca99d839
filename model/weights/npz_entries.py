"""Where each parameter is in the authors' `.npz` files, once `normalise` has renamed them.

D width, h heads, d = D / h; kernels are (in, out), attention kernels (D, h, d) and (h, d, D), convolutions
HWIO.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import BiTConfig, ViTConfig
from model.plans import ROOT_CHANNELS, stem_channels, stem_plan, unit_plan
from model.weights.layout import Entry, permuted, reshaped, same, stem_units

BLOCK = "Transformer/encoderblock_"
POSITIONS = "pos_embedding"
OIHW_FROM_HWIO = (3, 2, 0, 1)


def vit_entries(config: ViTConfig) -> list[Entry]:
    """Of a Vision Transformer, with or without a stem."""
    d, (rows, columns) = config.width, config.patch
    kernel = (d, stem_channels(config), rows, columns)
    found = [permuted("embedding.patch.weight", "embedding/kernel", kernel, *OIHW_FROM_HWIO)]
    found += [same("embedding.patch.bias", "embedding/bias", (d,))]
    if config.has_class_token:
        found += [same("embedding.class_token", "cls", (1, 1, d))]
    if config.positions == "learned":
        found += [same("positions.table", POSITIONS, (1, config.num_tokens, d))]
    found += _stem(config)
    for layer in range(config.depth):
        found += _block(config, f"blocks.{layer}", f"{BLOCK}{layer}")
    found += _norm("norm", "Transformer/encoder_norm", d)
    found += _pool(config)
    if config.representation:
        found += _dense("pre_logits", "pre_logits", d, d)
    return [*found, *_dense("head", "head", config.num_classes, d)]


def bit_entries(config: BiTConfig) -> list[Entry]:
    """Of a BiT ResNet; units are numbered from 01 in each block."""
    found = [_conv("root.conv", "resnet/root_block/standardized_conv2d", 64 * config.width_factor, 3, 7)]
    for (flat, stage, unit), (before, after, _) in zip(stem_units(config), unit_plan(config), strict=True):
        ours, theirs, middle = f"blocks.{flat}", f"resnet/block{stage + 1}/unit{unit + 1:02d}", after // 4
        parts = (("a", middle, before, 1), ("b", middle, middle, 3), ("c", after, middle, 1))
        for number, (letter, channels, inputs, kernel) in enumerate(parts, 1):
            conv = f"{theirs}/{letter}/standardized_conv2d"
            found += [_conv(f"{ours}.conv{number}", conv, channels, inputs, kernel)]
            found += _group_norm(f"{ours}.norm{number}", f"{theirs}/{letter}/group_norm", inputs)
        if unit == 0:
            found += [_conv(f"{ours}.conv_proj", f"{theirs}/a/proj/standardized_conv2d", after, before, 1)]
    classes, features = config.num_classes, config.feature_width
    found += _group_norm("norm", "resnet/group_norm", features)
    found += [_pointwise("head.weight", "resnet/head/conv2d/kernel", classes, features)]
    return [*found, same("head.bias", "resnet/head/conv2d/bias", (classes,))]


def _block(config: ViTConfig, ours: str, theirs: str) -> list[Entry]:
    d, attention = config.width, f"{theirs}/MultiHeadDotProductAttention_0"
    found = [
        *_norm(f"{ours}.norm1", f"{theirs}/LayerNorm_0", d),
        *_norm(f"{ours}.norm2", f"{theirs}/LayerNorm_1", d),
    ]
    found += _projections(f"{ours}.attention.qkv", attention, ("query", "key", "value"), d, config.heads)
    found += _output(f"{ours}.attention.out", f"{attention}/out", d, config.heads)
    found += _dense(f"{ours}.mlp.up", f"{theirs}/MlpBlock_0/Dense_0", config.mlp, d)
    return [*found, *_dense(f"{ours}.mlp.down", f"{theirs}/MlpBlock_0/Dense_1", d, config.mlp)]


def _pool(config: ViTConfig) -> list[Entry]:
    if config.pool != "map":
        return []
    d, theirs = config.width, "MAPHead_0"
    attention = f"{theirs}/MultiHeadDotProductAttention_0"
    found = [same("pool.probe", f"{theirs}/probe", (1, 1, d))]
    found += _projections("pool.attention.query", attention, ("query",), d, config.heads)
    found += _projections("pool.attention.key_value", attention, ("key", "value"), d, config.heads)
    found += _output("pool.attention.out", f"{attention}/out", d, config.heads)
    found += _norm("pool.norm", f"{theirs}/LayerNorm_0", d)
    found += _dense("pool.mlp.up", f"{theirs}/MlpBlock_0/Dense_0", config.mlp, d)
    return [*found, *_dense("pool.mlp.down", f"{theirs}/MlpBlock_0/Dense_1", d, config.mlp)]


def _stem(config: ViTConfig) -> list[Entry]:
    if config.stem is None:
        return []
    found = [_conv("stem.root.conv", "conv_root", ROOT_CHANNELS, 3, 7)]
    found += _norm("stem.root.norm", "gn_root", ROOT_CHANNELS)
    for (flat, stage, unit), (before, after, _) in zip(stem_units(config), stem_plan(config), strict=True):
        ours, theirs, middle = f"stem.blocks.{flat}", f"block{stage + 1}/unit{unit + 1}", after // 4
        shapes = ((middle, before, 1), (middle, middle, 3), (after, middle, 1))
        for number, (channels, inputs, kernel) in enumerate(shapes, 1):
            found += [_conv(f"{ours}.conv{number}", f"{theirs}/conv{number}", channels, inputs, kernel)]
            found += _norm(f"{ours}.norm{number}", f"{theirs}/gn{number}", channels)
        if unit == 0:
            found += [_conv(f"{ours}.conv_proj", f"{theirs}/conv_proj", after, before, 1)]
            found += _norm(f"{ours}.norm_proj", f"{theirs}/gn_proj", after)
    return found


def _norm(ours: str, theirs: str, width: int) -> list[Entry]:
    return [
        same(f"{ours}.weight", f"{theirs}/scale", (width,)),
        same(f"{ours}.bias", f"{theirs}/bias", (width,)),
    ]


def _group_norm(ours: str, theirs: str, channels: int) -> list[Entry]:
    weight, bias = f"{theirs}/gamma", f"{theirs}/beta"
    return [same(f"{ours}.weight", weight, (channels,)), same(f"{ours}.bias", bias, (channels,))]


def _dense(ours: str, theirs: str, outputs: int, inputs: int) -> list[Entry]:
    kernel = permuted(f"{ours}.weight", f"{theirs}/kernel", (outputs, inputs), 1, 0)
    return [kernel, same(f"{ours}.bias", f"{theirs}/bias", (outputs,))]


def _conv(ours: str, theirs: str, outputs: int, inputs: int, kernel: int) -> Entry:
    return permuted(f"{ours}.weight", f"{theirs}/kernel", (outputs, inputs, kernel, kernel), *OIHW_FROM_HWIO)


def _pointwise(ours: str, theirs: str, outputs: int, inputs: int) -> Entry:
    return Entry(
        ours,
        (theirs,),
        ((1, 1, inputs, outputs),),
        lambda parts: parts[0].reshape(inputs, outputs).t(),
        lambda whole: [whole.t().reshape(1, 1, inputs, outputs)],
    )


def _projections(ours: str, theirs: str, names: Sequence[str], width: int, heads: int) -> list[Entry]:
    """Kernels (D, h, d) and biases (h, d) of `names`, which we keep stacked as (len x D, D) and (len x D)."""
    apart = (width, heads, width // heads)

    def unpack(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(width, width).t() for part in parts])

    def pack(whole: Tensor) -> list[Tensor]:
        return [part.t().reshape(apart) for part in whole.chunk(len(names))]

    kernels = tuple(f"{theirs}/{name}/kernel" for name in names)
    biases = tuple(f"{theirs}/{name}/bias" for name in names)
    return [
        Entry(f"{ours}.weight", kernels, (apart,) * len(names), unpack, pack),
        Entry(
            f"{ours}.bias",
            biases,
            (apart[1:],) * len(names),
            lambda parts: torch.cat([part.flatten() for part in parts]),
            lambda whole: [part.reshape(apart[1:]) for part in whole.chunk(len(names))],
        ),
    ]


def _output(ours: str, theirs: str, width: int, heads: int) -> list[Entry]:
    apart = (heads, width // heads, width)
    kernel = Entry(
        f"{ours}.weight",
        (f"{theirs}/kernel",),
        (apart,),
        lambda parts: parts[0].reshape(width, width).t(),
        lambda whole: [whole.t().reshape(apart)],
    )
    return [kernel, reshaped(f"{ours}.bias", f"{theirs}/bias", (width,), (width,))]

"""The layout of timm: ViT, hybrids and BiT ResNets.

timm uses the exact GELU and, in the hybrids, group norms with epsilon 1e-5 and weight standardisation with
1e-8 under the root. It has no hidden layer before the head. Mean pooling is the one with the norm before the
pool (`fc_norm=False`).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import BiTConfig, ModelConfig, ViTConfig
from model.plans import ROOT_CHANNELS, stem_channels, stem_plan, unit_plan
from model.weights.layout import Entry, Facts, Room, count_parts, linear, reshaped, same, stem_units

NAME = "timm"
RESIZE_RULE = "bicubic_antialias"  # of this library's position tables
VIT_CONVENTIONS: Mapping[str, Any] = {
    "gelu": "erf",
    "norm_eps": 1e-6,
    "stem_norm_eps": 1e-5,
    "stem_conv_eps": 1e-8,
    "stem_conv_eps_in": "variance",
}
BIT_CONVENTIONS: Mapping[str, Any] = {"conv_eps": 1e-8}
ROOM = Room(NAME, stem=True, qk_norm=True, pools=("token", "gap", "map"), positions=("learned", "none"))


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are timm's names."""
    return "patch_embed.proj.weight" in tensors or "stages.0.blocks.0.norm1.weight" in tensors


def normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `entries`: nothing to do here."""
    return dict(tensors)


def entries(config: ModelConfig) -> list[Entry]:
    """Where each of our parameters is; raises ValueError for a model this layout has no place for."""
    if isinstance(config, BiTConfig):
        return _bit(config)
    ROOM.check(config)
    d, (rows, columns) = config.width, config.patch
    patch = (d, stem_channels(config), rows, columns)
    found = [same("embedding.patch.weight", "patch_embed.proj.weight", patch)]
    found += [same("embedding.patch.bias", "patch_embed.proj.bias", (d,))]
    if config.has_class_token:
        found += [same("embedding.class_token", "cls_token", (1, 1, d))]
    if config.positions == "learned":
        found += [same("positions.table", "pos_embed", (1, config.num_tokens, d))]
    found += [*_stem(config), *(entry for layer in range(config.depth) for entry in _block(config, layer))]
    found += [*linear("norm", "norm", d), *_pool(config)]
    found += [same("head.weight", "head.weight", (config.num_classes, d))]
    return [*found, same("head.bias", "head.bias", (config.num_classes,))]


def _block(config: ViTConfig, layer: int) -> list[Entry]:
    d, m, block = config.width, config.mlp, f"blocks.{layer}"
    found = [*linear(f"{block}.norm1", f"{block}.norm1", d), *linear(f"{block}.norm2", f"{block}.norm2", d)]
    found += linear(f"{block}.attention.qkv", f"{block}.attn.qkv", 3 * d, d)
    found += linear(f"{block}.attention.out", f"{block}.attn.proj", d, d)
    for name in ("q_norm", "k_norm") if config.qk_norm else ():
        found += linear(f"{block}.attention.{name}", f"{block}.attn.{name}", d // config.heads)
    found += linear(f"{block}.mlp.up", f"{block}.mlp.fc1", m, d)
    return [*found, *linear(f"{block}.mlp.down", f"{block}.mlp.fc2", d, m)]


def _pool(config: ViTConfig) -> list[Entry]:
    if config.pool != "map":
        return []
    d, m = config.width, config.mlp
    found = [same("pool.probe", "attn_pool.latent", (1, 1, d)), *linear("pool.norm", "attn_pool.norm", d)]
    found += linear("pool.attention.query", "attn_pool.q", d, d)
    found += linear("pool.attention.key_value", "attn_pool.kv", 2 * d, d)
    found += linear("pool.attention.out", "attn_pool.proj", d, d)
    found += linear("pool.mlp.up", "attn_pool.mlp.fc1", m, d)
    return [*found, *linear("pool.mlp.down", "attn_pool.mlp.fc2", d, m)]


def _stem(config: ViTConfig) -> list[Entry]:
    if config.stem is None:
        return []
    backbone = "patch_embed.backbone"
    root = f"{backbone}.stem" if config.stem else backbone
    found = [same("stem.root.conv.weight", f"{root}.conv.weight", (ROOT_CHANNELS, 3, 7, 7))]
    found += linear("stem.root.norm", f"{root}.norm", ROOT_CHANNELS)
    for (flat, stage, unit), plan in zip(stem_units(config), stem_plan(config), strict=True):
        theirs = f"{backbone}.stages.{stage}.blocks.{unit}"
        before, after, _ = plan
        found += _unit(f"stem.blocks.{flat}", theirs, before, after, (after // 4, after // 4, after))
        if unit == 0:
            found += [
                same(
                    f"stem.blocks.{flat}.conv_proj.weight",
                    f"{theirs}.downsample.conv.weight",
                    (after, before, 1, 1),
                )
            ]
            found += linear(f"stem.blocks.{flat}.norm_proj", f"{theirs}.downsample.norm", after)
    return found


def _unit(ours: str, theirs: str, before: int, after: int, norms: tuple[int, int, int]) -> list[Entry]:
    middle = after // 4
    convs = ((middle, before, 1, 1), (middle, middle, 3, 3), (after, middle, 1, 1))
    found = [
        same(f"{ours}.conv{i}.weight", f"{theirs}.conv{i}.weight", shape) for i, shape in enumerate(convs, 1)
    ]
    for i, channels in enumerate(norms, 1):
        found += linear(f"{ours}.norm{i}", f"{theirs}.norm{i}", channels)
    return found


def _bit(config: BiTConfig) -> list[Entry]:
    found = [same("root.conv.weight", "stem.conv.weight", (64 * config.width_factor, 3, 7, 7))]
    for (flat, stage, unit), plan in zip(stem_units(config), unit_plan(config), strict=True):
        ours, theirs = f"blocks.{flat}", f"stages.{stage}.blocks.{unit}"
        before, after, _ = plan
        found += _unit(ours, theirs, before, after, (before, after // 4, after // 4))
        if unit == 0:
            found += [
                same(f"{ours}.conv_proj.weight", f"{theirs}.downsample.conv.weight", (after, before, 1, 1))
            ]
    classes, features = config.num_classes, config.feature_width
    found += linear("norm", "norm", features)
    found += [reshaped("head.weight", "head.fc.weight", (classes, features), (classes, features, 1, 1))]
    return [*found, same("head.bias", "head.fc.bias", (classes,))]


def facts(tensors: Mapping[str, Tensor]) -> Facts:
    """What the tensors tell about their model."""
    if "stages.0.blocks.0.norm1.weight" in tensors:
        return _bit_facts(tensors)
    patch = tensors["patch_embed.proj.weight"].shape
    head, table = tensors.get("head.weight"), tensors.get("pos_embed")
    return Facts(
        width=patch[0],
        depth=count_parts(tensors, "blocks."),
        mlp=_rows(tensors, "blocks.0.mlp.fc1.weight"),
        patch=(patch[2], patch[3]),
        tokens=None if table is None else table.shape[1],
        class_token="cls_token" in tensors,
        attention_pool="attn_pool.latent" in tensors,
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        num_classes=None if head is None else head.shape[0],
        stem=_stem_facts(tensors),
    )


def _bit_facts(tensors: Mapping[str, Tensor]) -> Facts:
    head = tensors.get("head.fc.weight")
    return Facts(
        bit_blocks=_stages(tensors, "stages"),
        bit_width=_rows(tensors, "stem.conv.weight") // 64,
        num_classes=None if head is None else head.shape[0],
    )


def _stem_facts(tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    if "patch_embed.backbone.conv.weight" in tensors:
        return ()
    stages = _stages(tensors, "patch_embed.backbone.stages")
    return stages or None


def _stages(tensors: Mapping[str, Tensor], prefix: str) -> tuple[int, ...]:
    stages = range(count_parts(tensors, f"{prefix}."))
    return tuple(count_parts(tensors, f"{prefix}.{stage}.blocks.") for stage in stages)


def _rows(tensors: Mapping[str, Tensor], key: str) -> int:
    return tensors[key].shape[0] if key in tensors else 0

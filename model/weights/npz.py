"""The authors' `.npz` files: Vision Transformers and hybrids of both code bases, and BiT ResNets.

Names inside, after an optional prefix `opt/target/`, `params/` or `params/img/`:

    vit_jax      cls, embedding, Transformer/posembed_input/pos_embedding (class row first),
                 Transformer/encoderblock_I/{LayerNorm_0, MultiHeadDotProductAttention_1, LayerNorm_2,
                 MlpBlock_3}
    big_vision   pos_embedding at the root, without class row; LayerNorm_1, MlpBlock_0 ...; MAPHead_0; some
    files
                 hold all blocks as one, with a leading axis for the depth
    BiT          resnet/blockB/unitUU/{a,b,c}/{standardized_conv2d,group_norm}

`normalise` brings all of them under one set of names (those of big_vision, positions with a class row);
`denormalise` turns that into the files of the original releases. Kernels are stored input axis first, heads
apart.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import BiTConfig, ModelConfig
from model.weights.layout import Entry, Facts, Room, count_parts
from model.weights.npz_entries import BLOCK, POSITIONS, bit_entries, vit_entries

NAME = "npz"
RESIZE_RULE = "align_corners_bilinear"  # of this library's position tables
VIT_CONVENTIONS: Mapping[str, Any] = {
    "gelu": "tanh",
    "norm_eps": 1e-6,
    "stem_norm_eps": 1e-6,
    "stem_conv_eps": 1e-5,
    "stem_conv_eps_in": "std",
}
BIT_CONVENTIONS: Mapping[str, Any] = {"conv_eps": 1e-10}
ROOM = Room(
    NAME,
    stem=True,
    representation=True,
    pools=("token", "gap", "map"),
    positions=("learned", "none", "sincos2d"),
)
PREFIXES = ("opt/target/", "params/img/", "params/")
ORIGINAL_POSITIONS = "Transformer/posembed_input/pos_embedding"
# Names of the first releases, before flax numbered the parts of a block by their kind.
OLD_NAMES = {
    "LayerNorm_2": "LayerNorm_1",
    "MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0",
    "MlpBlock_3": "MlpBlock_0",
}


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the authors' names."""
    keys = {_without_prefix(key) for key in tensors}
    return "embedding/kernel" in keys or "resnet/root_block/standardized_conv2d/kernel" in keys


def normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All variants under one set of names; values change only where a class row of zeros is added."""
    found = {_modern(_without_prefix(key)): _flat_norm(key, value) for key, value in tensors.items()}
    found = _one_by_one(found)
    if ORIGINAL_POSITIONS in found:
        found[POSITIONS] = found.pop(ORIGINAL_POSITIONS)
    elif POSITIONS in found and "cls" in found:
        # big_vision adds positions before the class token is put in front: its row is zero.
        table = found[POSITIONS]
        found[POSITIONS] = torch.cat([table.new_zeros(1, 1, table.shape[-1]), table], dim=1)
    return found


def denormalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of the original releases; attention pooling, which they do not have, keeps big_vision's."""
    back = {new: old for old, new in OLD_NAMES.items()}
    found = {
        re.sub(rf"(?<=^{BLOCK[:-1]}_)(\d+)/(\w+)", _renamed(back), key): value
        for key, value in tensors.items()
    }
    if POSITIONS in found:
        found[ORIGINAL_POSITIONS] = found.pop(POSITIONS)
    return found


def entries(config: ModelConfig) -> list[Entry]:
    """Where each of our parameters is; raises ValueError for a model this layout has no place for."""
    if isinstance(config, BiTConfig):
        return bit_entries(config)
    ROOM.check(config)
    return vit_entries(config)


def facts(tensors: Mapping[str, Tensor]) -> Facts:
    """What the normalised tensors tell about their model."""
    if "resnet/root_block/standardized_conv2d/kernel" in tensors:
        return _bit_facts(tensors)
    patch, table, head = tensors["embedding/kernel"].shape, tensors.get(POSITIONS), tensors.get("head/kernel")
    query = tensors.get(f"{BLOCK}0/MultiHeadDotProductAttention_0/query/kernel")
    up = tensors.get(f"{BLOCK}0/MlpBlock_0/Dense_0/kernel")
    stages = range(1, count_parts((key for key in tensors if re.match(r"block\d+/", key)), "block", "/") + 1)
    stem = tuple(count_parts(tensors, f"block{stage}/", "/") for stage in stages)
    return Facts(
        width=patch[-1],
        depth=count_parts(tensors, BLOCK, "/"),
        mlp=0 if up is None else up.shape[-1],
        patch=(patch[0], patch[1]),
        heads=None if query is None else query.shape[-2],
        tokens=None if table is None else table.shape[-2],
        class_token="cls" in tensors,
        attention_pool="MAPHead_0/probe" in tensors,
        representation="pre_logits/kernel" in tensors,
        num_classes=None if head is None else head.shape[-1],
        stem=stem if "conv_root/kernel" in tensors else None,
    )


def _bit_facts(tensors: Mapping[str, Tensor]) -> Facts:
    stages = range(1, count_parts(tensors, "resnet/block", "/") + 1)
    head = tensors.get("resnet/head/conv2d/kernel")
    return Facts(
        bit_blocks=tuple(count_parts(tensors, f"resnet/block{stage}/", "/") for stage in stages),
        bit_width=tensors["resnet/root_block/standardized_conv2d/kernel"].shape[-1] // 64,
        num_classes=None if head is None else head.shape[-1],
    )


def _without_prefix(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _modern(key: str) -> str:
    return re.sub(r"(?<=^Transformer/encoderblock_)(\d+)/(\w+)", _renamed(OLD_NAMES), key)


def _renamed(names: Mapping[str, str]) -> Any:
    return lambda match: f"{match[1]}/{names.get(match[2], match[2])}"


def _flat_norm(key: str, value: Tensor) -> Tensor:
    # Old group norms are stored as (1, 1, 1, C).
    return value.flatten() if re.search(r"gn_?\w*/(scale|bias)$|group_norm/(gamma|beta)$", key) else value


def _one_by_one(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    merged = "Transformer/encoderblock/"
    found = {key: value for key, value in tensors.items() if not key.startswith(merged)}
    for key in tensors.keys() - found.keys():
        for layer, part in enumerate(tensors[key]):
            found[f"{BLOCK}{layer}/{key.removeprefix(merged)}"] = part
    return found

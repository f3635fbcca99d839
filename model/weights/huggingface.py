"""The layout of Hugging Face's `ViTForImageClassification`, and of `ViTModel` on the way in.

Exact GELU, layer norms with epsilon 1e-12, class token. The classifier has no hidden layer; the pooler of
`ViTModel` is one, and is read as such.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from model.config import ModelConfig, ViTConfig
from model.weights.layout import Entry, Facts, Room, as_vit, count_parts, linear, same, stacked

NAME = "huggingface"
RESIZE_RULE = "bicubic"  # of this library's position tables
VIT_CONVENTIONS: Mapping[str, Any] = {"gelu": "erf", "norm_eps": 1e-12}
BIT_CONVENTIONS: Mapping[str, Any] = {}
ROOM = Room(NAME, representation=True)
LAYER = "vit.encoder.layer."
PATCH = "vit.embeddings.patch_embeddings.projection"


def recognise(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are Hugging Face's names, with or without the leading `vit.`."""
    return f"{PATCH}.weight" in tensors or f"{PATCH}.weight".removeprefix("vit.") in tensors


def normalise(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names of `entries`; a bare `ViTModel` gets the classifier's prefix."""
    if f"{PATCH}.weight" in tensors:
        return dict(tensors)
    return {f"vit.{key}": value for key, value in tensors.items()}


def entries(config: ModelConfig) -> list[Entry]:
    """Where each of our parameters is; raises ValueError for a model this layout has no place for."""
    config = as_vit(config, NAME)
    ROOM.check(config)
    d, m, (rows, columns) = config.width, config.mlp, config.patch
    found = [
        same("embedding.patch.weight", f"{PATCH}.weight", (d, 3, rows, columns)),
        same("embedding.patch.bias", f"{PATCH}.bias", (d,)),
        same("embedding.class_token", "vit.embeddings.cls_token", (1, 1, d)),
        same("positions.table", "vit.embeddings.position_embeddings", (1, config.num_tokens, d)),
    ]
    for layer in range(config.depth):
        ours, theirs = f"blocks.{layer}", f"{LAYER}{layer}"
        qkv = [f"{theirs}.attention.attention.{part}" for part in ("query", "key", "value")]
        found += linear(f"{ours}.norm1", f"{theirs}.layernorm_before", d)
        found += [stacked(f"{ours}.attention.qkv.weight", [f"{part}.weight" for part in qkv], (d, d))]
        found += [stacked(f"{ours}.attention.qkv.bias", [f"{part}.bias" for part in qkv], (d,))]
        found += linear(f"{ours}.attention.out", f"{theirs}.attention.output.dense", d, d)
        found += linear(f"{ours}.norm2", f"{theirs}.layernorm_after", d)
        found += linear(f"{ours}.mlp.up", f"{theirs}.intermediate.dense", m, d)
        found += linear(f"{ours}.mlp.down", f"{theirs}.output.dense", d, m)
    found += linear("norm", "vit.layernorm", d)
    if config.representation:
        found += linear("pre_logits", "vit.pooler.dense", d, d)
    return [*found, *linear("head", "classifier", config.num_classes, d)]


def config_json(config: ViTConfig) -> dict[str, Any]:
    """The `config.json` that Hugging Face reads beside the weights."""
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp,
        "hidden_act": "gelu_pytorch_tanh" if config.gelu == "tanh" else "gelu",
        "layer_norm_eps": config.norm_eps,
        "image_size": list(config.image_size),
        "patch_size": list(config.patch),
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_classes)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_classes)},
    }


def facts(tensors: Mapping[str, Tensor]) -> Facts:
    """What the tensors tell about their model."""
    patch, head = tensors[f"{PATCH}.weight"].shape, tensors.get("classifier.weight")
    up, table = (
        tensors.get(f"{LAYER}0.intermediate.dense.weight"),
        tensors.get("vit.embeddings.position_embeddings"),
    )
    return Facts(
        width=patch[0],
        depth=count_parts(tensors, LAYER),
        mlp=0 if up is None else up.shape[0],
        patch=(patch[2], patch[3]),
        tokens=None if table is None else table.shape[1],
        representation="vit.pooler.dense.weight" in tensors,
        num_classes=None if head is None else head.shape[0],
    )

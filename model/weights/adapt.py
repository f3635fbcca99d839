"""Weights of one model for another task or another image size.

In go a state and the two configurations, out comes a state that fits the new one: position tables resized,
the pre-training head with its hidden tanh layer dropped and a zero head put in its place. The paper (Appendix
D.3) found dropping both layers more robust than starting only the last one anew.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import ModelConfig, ViTConfig
from model.positions import resize_positions

# Fields that may differ between the two configurations; all others decide what the weights mean.
FREE_FIELDS = frozenset(
    {
        "name",
        "num_classes",
        "image_size",
        "representation",
        "dropout",
        "stochastic_depth",
        "head_bias",
        "scheme",
    }
)
HEAD_KEYS = ("head.weight", "head.bias", "pre_logits.weight", "pre_logits.bias")


def adapt(
    state: Mapping[str, Tensor],
    old_config: ModelConfig,
    new_config: ModelConfig,
    *,
    new_head: bool,
    rule: str = "align_corners_bilinear",
) -> dict[str, Tensor]:
    """A state for `new_config` from one of `old_config`; tensors that need no change are shared with `state`.

    `new_head`: drop head and hidden layer, and start a zero head with the new configuration's bias; otherwise
    both configurations must agree on classes and hidden layer. `rule` is how learned positions are resized
    (`model.positions.RESIZE_RULES`). Raises ValueError where the networks differ in anything else.
    """
    _check_same_network(old_config, new_config)
    _check_head(old_config, new_config, new_head)
    adapted = dict(state)
    if (
        isinstance(old_config, ViTConfig)
        and isinstance(new_config, ViTConfig)
        and old_config.grid != new_config.grid
    ):
        adapted |= _resized(state, old_config, new_config, rule)
    if new_head:
        kept = {key: value for key, value in adapted.items() if key not in HEAD_KEYS}
        like = state["head.weight"] if "head.weight" in state else next(iter(state.values()))
        weight = torch.zeros(new_config.num_classes, new_config.feature_width, dtype=like.dtype)
        bias = torch.full((new_config.num_classes,), new_config.head_bias, dtype=like.dtype)
        adapted = kept | {"head.weight": weight, "head.bias": bias}
    return adapted


def _check_same_network(old: ModelConfig, new: ModelConfig) -> None:
    if type(old) is not type(new):
        raise ValueError(
            f"weights of {old.name!r} cannot become {new.name!r}: one is a ViT, the other a ResNet"
        )
    differing = [
        f"{field.name} is {getattr(old, field.name)!r} in the weights and {getattr(new, field.name)!r} in "
        "the new model"
        for field in fields(old)
        if field.name not in FREE_FIELDS and getattr(old, field.name) != getattr(new, field.name)
    ]
    if differing:
        raise ValueError(
            f"weights of {old.name!r} do not fit {new.name!r}: {'; '.join(differing)}. Only image size, "
            "classes, hidden layer and regularisation can change; set the rest as in the weights"
        )


def _check_head(old: ModelConfig, new: ModelConfig, new_head: bool) -> None:
    if new_head and getattr(new, "representation", False):
        raise ValueError(
            "a new head was asked for together with representation true, but a fresh hidden layer before a "
            "zero head would learn nothing from the weights; set representation to false"
        )
    if not new_head and old.num_classes != new.num_classes:
        raise ValueError(
            f"the weights have {old.num_classes} classes, the new model has {new.num_classes}; ask for a new "
            "head"
        )
    if not new_head and getattr(old, "representation", False) != getattr(new, "representation", False):
        raise ValueError(
            "only one of weights and new model has the hidden layer before the head; ask for a new head"
        )


def _resized(state: Mapping[str, Tensor], old: ViTConfig, new: ViTConfig, rule: str) -> dict[str, Tensor]:
    if old.positions == "relative":
        raise ValueError(
            f"relative positions were trained for a grid of {old.grid[0]}x{old.grid[1]} and found no rule to "
            f"grow to {new.grid[0]}x{new.grid[1]}: their offsets run in raster order; keep the image size"
        )
    if old.positions == "learned":
        token = old.has_class_token
        table = resize_positions(
            state["positions.table"], old.grid, new.grid, has_class_token=token, rule=rule
        )
        return {"positions.table": table}
    if old.positions == "learned2d":
        return {
            "positions.rows": resize_axis(state["positions.rows"], new.grid[0]),
            "positions.columns": resize_axis(state["positions.columns"], new.grid[1]),
        }
    return {}


def resize_axis(table_LND: Tensor, length: int) -> Tensor:
    """A table of one axis for another length, linear from first to last row; (L, N, D) to (L, N', D)."""
    resized = F.interpolate(table_LND.float().transpose(1, 2), size=length, mode="linear", align_corners=True)
    return resized.transpose(1, 2).to(table_LND.dtype)

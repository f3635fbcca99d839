"""Names to configurations, without PyTorch.

Names: `vit_SIZEPATCH` with any patch (`vit_ti8`, `vit_b16`, `vit_h14`), the hybrids `rDEPTH_vit_SIZERATIO` of
the paper and of AugReg, where RATIO is the whole down-sampling, and `bit_rDEPTHxWIDTH`. Options replace
single fields of the configuration (`width=128`, `pool="gap"`, `dropout=0.1`).
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from model.checks import check_known
from model.config import BIT_BLOCKS, VIT_SIZES, BiTConfig, ModelConfig, ViTConfig, as_pair

_LISTED_PATCHES: Mapping[str, tuple[int, ...]] = {
    "ti": (4, 8, 16, 32),
    "s": (8, 14, 16, 32),
    "b": (8, 14, 16, 32),
    "l": (14, 16, 32),
    "h": (14, 16),
    "so400m": (14,),
    "g": (14,),
    "G": (14,),
}

# Size, blocks of each stage, patch on the stem's output. Paper, Section 4.1: stage 4 kept (/32), or its
# blocks left out and only three stages used (/16). AugReg's R+Ti/16 has the root alone: it strides 4, so 8x8
# patches end at /32.
HYBRIDS: Mapping[str, tuple[str, tuple[int, ...], int]] = {
    "r_vit_ti16": ("ti", (), 8),
    "r26_vit_s32": ("s", (2, 2, 2, 2), 1),
    "r26_vit_b32": ("b", (2, 2, 2, 2), 1),
    "r50_vit_b16": ("b", (3, 4, 9), 1),
    "r50_vit_b32": ("b", (3, 4, 6, 3), 1),
    "r50_vit_l16": ("l", (3, 4, 9), 1),
    "r50_vit_l32": ("l", (3, 4, 6, 3), 1),
}
_BIT_WIDTHS = (1, 2, 3, 4)
# Arguments of their own, so never options.
_FIXED_FIELDS = ("name", "num_classes", "image_size", "representation")


def list_models() -> list[str]:
    """The published names; `vit_SIZEPATCH` exists for every other patch too."""
    vits = [f"vit_{size}{patch}" for size, patches in _LISTED_PATCHES.items() for patch in patches]
    return vits + list(HYBRIDS) + [f"bit_r{depth}x{width}" for depth in BIT_BLOCKS for width in _BIT_WIDTHS]


def model_config(
    name: str,
    *,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    representation: bool = False,
    **options: Any,
) -> ModelConfig:
    """The configuration `create_model` would build from; the same arguments and errors."""
    cls, values = named_fields(name)
    known = [field.name for field in fields(cls) if field.name not in _FIXED_FIELDS]
    for option in options:
        check_known(f"option of model {name!r}", option, known)
    values |= {"name": name, "num_classes": num_classes, "image_size": as_pair(image_size)}
    values |= {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    if cls is BiTConfig:
        if representation:
            raise ValueError(
                f"model {name!r} has no hidden layer before its head; set representation to false"
            )
        return BiTConfig(**values)
    if "patch" in values:
        values["patch"] = as_pair(values["patch"])
    if values.get("positions") == "relative":
        values.setdefault("positions_at", "layers")
    return ViTConfig(representation=representation, **values)


def named_fields(name: str) -> tuple[type[ViTConfig] | type[BiTConfig], dict[str, Any]]:
    """The kind of configuration and the fields a name stands for; ValueError naming the nearest names."""
    if match := re.fullmatch(r"vit_([a-zA-Z]+|so400m)([1-9]\d*)", name):
        size, patch = match.groups()
        if size in VIT_SIZES:
            return ViTConfig, _size(size) | {"patch": (int(patch), int(patch))}
    if name in HYBRIDS:
        size, stem, patch = HYBRIDS[name]
        return ViTConfig, _size(size) | {"patch": (patch, patch), "stem": stem}
    if (match := re.fullmatch(r"bit_r(\d+)x([1-9]\d*)", name)) and int(match[1]) in BIT_BLOCKS:
        return BiTConfig, {"blocks": BIT_BLOCKS[int(match[1])], "width_factor": int(match[2])}
    check_known("model", name, list_models())
    raise AssertionError(f"{name} is listed but not known")


def _size(name: str) -> dict[str, Any]:
    size = VIT_SIZES[name]
    return {"width": size.width, "depth": size.depth, "heads": size.heads, "mlp": size.mlp}

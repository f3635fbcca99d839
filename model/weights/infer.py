"""From the shapes of a foreign file to the configuration of its model.

Shapes tell width, depth, patch and tokens, but neither the number of heads (but in the authors' files) nor
the sides of a grid; those come from the table of sizes, and from the caller where the table does not know.
"""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from model.config import VIT_SIZES, BiTConfig, ModelConfig, ViTConfig, as_pair, stem_stride
from model.weights.layout import Facts
from model.zoo import HYBRIDS, model_config, named_fields


def config_of(
    facts: Facts,
    *,
    name: str | None,
    image_size: int | tuple[int, int] | None,
    num_classes: int,
    options: Mapping[str, Any],
) -> ModelConfig:
    """The configuration of the model that a file holds.

    `name` overrules what the shapes say about the size; `image_size` (pixels) is needed for a grid that is
    not square. `options` are the layout's conventions and the caller's wishes. Raises ValueError for what
    cannot be told.
    """
    if facts.bit_blocks is not None:
        return _bit_config(facts, name, as_pair(image_size or 224), num_classes, options)
    values = _named(name) if name else _measured(facts, options)
    if image_size is None:
        image_size = _square(facts, values)
    pool = "map" if facts.attention_pool else "token" if facts.class_token else "gap"
    values |= {"pool": pool, "qk_norm": facts.qk_norm, "representation": facts.representation}
    values |= {} if facts.tokens is not None else {"positions": "none"}
    # Through the zoo, so that an unknown option is refused with its nearest name.
    model_config("vit_b16", num_classes=1, **{key: options[key] for key in options if key not in values})
    values |= {"name": name or _name(facts), "num_classes": num_classes, "image_size": as_pair(image_size)}
    return ViTConfig(**{**values, **options})


def _bit_config(
    facts: Facts, name: str | None, image_size: tuple[int, int], num_classes: int, options: Mapping[str, Any]
) -> BiTConfig:
    assert facts.bit_blocks is not None
    measured: dict[str, Any] = {"blocks": facts.bit_blocks, "width_factor": facts.bit_width}
    cls, values = named_fields(name) if name else (BiTConfig, measured)
    if cls is not BiTConfig:
        raise ValueError(
            f"the file holds a BiT ResNet, {name!r} is a Vision Transformer; leave the name out or correct it"
        )
    # Through the zoo, so that an unknown option is refused with its nearest name.
    model_config("bit_r50x1", num_classes=1, **options)
    name = name or f"bit_r{2 + 3 * sum(facts.bit_blocks)}x{facts.bit_width}"
    return BiTConfig(
        **{"name": name, "num_classes": num_classes, "image_size": image_size, **values, **options}
    )


def _named(name: str) -> dict[str, Any]:
    cls, values = named_fields(name)
    if cls is BiTConfig:
        raise ValueError(
            f"the file holds a Vision Transformer, {name!r} is a ResNet; leave the name out or correct it"
        )
    return values


def _measured(facts: Facts, options: Mapping[str, Any]) -> dict[str, Any]:
    size = _size_name(facts)
    heads = options.get("heads") or facts.heads or (VIT_SIZES[size].heads if size else None)
    if heads is None:
        raise ValueError(
            f"the file holds a Vision Transformer of width {facts.width}, depth {facts.depth} and MLP "
            f"{facts.mlp}, which is no published size, and does not say how many heads it has; give heads"
        )
    return {
        "width": facts.width,
        "depth": facts.depth,
        "heads": heads,
        "mlp": facts.mlp,
        "patch": facts.patch,
        "stem": facts.stem,
    }


def _square(facts: Facts, values: Mapping[str, Any]) -> tuple[int, int]:
    stride = stem_stride(values.get("stem"))
    rows, columns = as_pair(values["patch"])
    if facts.tokens is None:
        return 224, 224
    patches = facts.tokens - int(facts.class_token)
    side = isqrt(patches)
    if side * side != patches:
        raise ValueError(
            f"the position table has {patches} rows for patches, which is no square; give image_size as "
            "height and width"
        )
    return side * stride * rows, side * stride * columns


def _size_name(facts: Facts) -> str | None:
    for name, size in VIT_SIZES.items():
        if (size.width, size.depth, size.mlp) == (facts.width, facts.depth, facts.mlp):
            return name
    return None


def _name(facts: Facts) -> str:
    size = _size_name(facts)
    if size is None:
        return "imported"
    for name, (hybrid_size, stem, patch) in HYBRIDS.items():
        if (hybrid_size, stem, (patch, patch)) == (size, facts.stem, facts.patch):
            return name
    return f"vit_{size}{facts.patch[0]}"

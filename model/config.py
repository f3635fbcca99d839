"""Frozen descriptions of a model, and the table of published sizes.

A configuration says everything that decides the shapes and the arithmetic of a network, checks itself when it
is made and turns into plain JSON types and back. It builds nothing: `model.zoo.build` does.

Sources. Paper: "An Image is Worth 16x16 Words" (arXiv 2010.11929), Table 1 and Section 4.1. Sizes it does not
print (Ti, S, g, G, So400m): `decode_variant` of google-research/big_vision. BiT: arXiv 1912.11370.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from math import prod
from typing import Any, Literal, get_args

from model.checks import (
    check_finite,
    check_flag,
    check_known,
    check_pair,
    check_positive,
    check_positive_number,
    check_rate,
    check_stages,
    check_word,
)

Pool = Literal["token", "gap", "map"]
PositionKind = Literal["none", "learned", "learned2d", "sincos2d", "relative"]
PositionPlace = Literal["stem", "layers", "layers_shared"]
Gelu = Literal["tanh", "erf"]
Scheme = Literal["paper", "big_vision", "timm_jax", "timm", "torchvision", "huggingface"]
EpsPlace = Literal["std", "variance"]

ROOT_STRIDE = 4  # the 7x7/2 convolution and the 3x3/2 pool in front of the first ResNet stage


@dataclass(frozen=True, slots=True)
class Size:
    """Width (features of a token), depth (blocks), heads and hidden features of the MLP."""

    width: int
    depth: int
    heads: int
    mlp: int


VIT_SIZES: Mapping[str, Size] = {
    "ti": Size(192, 12, 3, 768),  # DeiT's tiny; big_vision decode_variant
    "s": Size(384, 12, 6, 1536),  # big_vision decode_variant
    "b": Size(768, 12, 12, 3072),  # paper, Table 1
    "l": Size(1024, 24, 16, 4096),  # paper, Table 1
    "h": Size(1280, 32, 16, 5120),  # paper, Table 1
    "so400m": Size(1152, 27, 16, 4304),  # arXiv 2305.13035
    "g": Size(1408, 40, 16, 6144),  # arXiv 2106.04560, Table 2
    "G": Size(1664, 48, 16, 8192),  # arXiv 2106.04560, Table 2
}

BIT_BLOCKS: Mapping[int, tuple[int, ...]] = {
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """A Vision Transformer, with a convolutional stem in front if `stem` is given."""

    name: str  # the zoo's name, for people; nothing is derived from it
    num_classes: int  # outputs of the head, at least 1
    image_size: tuple[int, int] = (224, 224)  # height and width, pixels
    patch: tuple[int, int] = (16, 16)  # height and width of a patch, in pixels of the stem's output
    width: int  # D, features of a token
    depth: int  # number of blocks
    heads: int  # attention heads of a block; must divide the width
    mlp: int  # hidden features of a block's MLP
    pool: Pool = "token"  # class token, mean or attention pooling; only "token" has a class token
    positions: PositionKind = "learned"
    positions_at: PositionPlace = "stem"  # added once, or at every layer with own or one shared table
    representation: bool = False  # a hidden tanh layer before the head, as in pre-training
    dropout: float = 0.0  # in [0, 1): after positions, attention output, GELU and second MLP layer
    stochastic_depth: float = 0.0  # in [0, 1): drop rate of the last block; it rises linearly from 0
    qk_norm: bool = False  # layer norm over each head's queries and keys
    gelu: Gelu = "tanh"  # the authors' code uses the tanh approximation, the PyTorch libraries the exact form
    norm_eps: float = 1e-6  # epsilon of every layer norm
    head_bias: float = 0.0  # start value of the head's biases; -10 for sigmoid loss over 21,843 classes
    scheme: Scheme = "paper"  # initial weights, see model/initialise.py
    stem: tuple[int, ...] | None = None  # blocks of each ResNet stage; () is the root alone; None is no stem
    stem_norm_eps: float = 1e-6  # epsilon of the stem's group norms
    stem_conv_eps: float = 1e-5  # epsilon of the stem's weight standardisation ...
    stem_conv_eps_in: EpsPlace = "std"  # ... added to the deviation (authors) or to the variance (timm)

    def __post_init__(self) -> None:
        _check_words(self)
        for field in ("num_classes", "width", "depth", "heads", "mlp"):
            check_positive(field, getattr(self, field))
        for field in ("image_size", "patch"):
            check_pair(field, getattr(self, field))
        for field in ("dropout", "stochastic_depth"):
            check_rate(field, getattr(self, field))
        for field in ("norm_eps", "stem_norm_eps", "stem_conv_eps"):
            check_positive_number(field, getattr(self, field))
        for field in ("representation", "qk_norm"):
            check_flag(field, getattr(self, field))
        check_finite("head_bias", self.head_bias)
        if self.stem is not None:
            check_stages("stem", self.stem, least=0)
        self._check_heads()
        self._check_grid()
        self._check_positions()

    @property
    def stem_stride(self) -> int:
        """Input pixels along one side of a pixel that the patch embedding sees."""
        return stem_stride(self.stem)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        (height, width), (rows, columns) = self.image_size, self.patch
        return height // (self.stem_stride * rows), width // (self.stem_stride * columns)

    @property
    def has_class_token(self) -> bool:
        """Whether a learned token stands before the patches."""
        return self.pool == "token"

    @property
    def num_tokens(self) -> int:
        """Patches, and the class token where there is one."""
        return prod(self.grid) + int(self.has_class_token)

    @property
    def feature_width(self) -> int:
        """Features of what `features` returns and the head reads."""
        return self.width

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `config_from_dict` is the way back."""
        return _to_dict("vit", self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ViTConfig":
        """The inverse of `to_dict`; raises ValueError for an unknown or missing key."""
        return cls(**_checked_values(cls, values))

    def _check_heads(self) -> None:
        if self.width % self.heads:
            nearest = min((h for h in range(1, self.width + 1) if self.width % h == 0), key=self._from_heads)
            raise ValueError(
                f"width {self.width} is not divisible by heads {self.heads}: every head needs the same "
                f"number of features; set heads to {nearest}, the nearest that works, or change the width"
            )

    def _from_heads(self, heads: int) -> int:
        return abs(heads - self.heads)

    def _check_grid(self) -> None:
        steps = [self.stem_stride * side for side in self.patch]
        if any(pixels % step for pixels, step in zip(self.image_size, steps, strict=True)):
            pairs = zip(self.image_size, steps, strict=True)
            height, width = (max(step, round(pixels / step) * step) for pixels, step in pairs)
            raise ValueError(
                f"image_size {by(self.image_size)} of model {self.name!r} is not divisible by its patch of "
                f"{by((steps[0], steps[1]))} pixels; set image_size to {by((height, width))}, the nearest "
                "that works, or choose another patch"
            )

    def _check_positions(self) -> None:
        if self.positions == "relative" and self.positions_at == "stem":
            raise ValueError(
                "positions 'relative' found with positions_at 'stem': relative positions act inside the "
                "attention of each layer; set positions_at to 'layers' or 'layers_shared'"
            )
        if self.positions == "none" and self.positions_at != "stem":
            raise ValueError(
                f"positions 'none' found with positions_at {self.positions_at!r}, which would have no "
                "effect; leave positions_at at 'stem'"
            )
        parts = {"learned2d": 2, "sincos2d": 4}.get(self.positions, 1)
        if self.width % parts:
            raise ValueError(
                f"positions {self.positions!r} need a width divisible by {parts}, found {self.width}; choose "
                "such a width or positions 'learned'"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class BiTConfig:
    """A pre-activation ResNet with group norm and weight standardisation (BiT)."""

    name: str  # the zoo's name, for people; nothing is derived from it
    num_classes: int  # outputs of the head, at least 1
    image_size: tuple[int, int] = (224, 224)  # height and width, pixels; other sizes run too
    blocks: tuple[int, ...]  # residual units of each stage
    width_factor: int = 1  # multiplies every channel count of the plain ResNet
    head_bias: float = 0.0  # start value of the head's biases; -10 for sigmoid loss over 21,843 classes
    norm_eps: float = 1e-5  # epsilon of every group norm
    conv_eps: float = 1e-10  # epsilon of the weight standardisation, added to the variance

    def __post_init__(self) -> None:
        for field in ("num_classes", "width_factor"):
            check_positive(field, getattr(self, field))
        for field in ("norm_eps", "conv_eps"):
            check_positive_number(field, getattr(self, field))
        check_pair("image_size", self.image_size)
        check_finite("head_bias", self.head_bias)
        check_stages("blocks", self.blocks, least=1)

    @property
    def feature_width(self) -> int:
        """Channels of the last stage, which `features` returns and the head reads."""
        return 256 * self.width_factor << (len(self.blocks) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `config_from_dict` is the way back."""
        return _to_dict("bit", self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BiTConfig":
        """The inverse of `to_dict`; raises ValueError for an unknown or missing key."""
        return cls(**_checked_values(cls, values))


ModelConfig = ViTConfig | BiTConfig

_KINDS: Mapping[str, type[ViTConfig] | type[BiTConfig]] = {"vit": ViTConfig, "bit": BiTConfig}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "pool": get_args(Pool),
    "positions": get_args(PositionKind),
    "positions_at": get_args(PositionPlace),
    "gelu": get_args(Gelu),
    "scheme": get_args(Scheme),
    "stem_conv_eps_in": get_args(EpsPlace),
}


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """The configuration that `to_dict` wrote; ValueError for an unknown or missing key."""
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"model configuration of kind {kind!r}, expected one of {', '.join(_KINDS)}; the file is not "
            "from this program or from a newer version of it"
        )
    return _KINDS[kind].from_dict(values)


def stem_stride(stem: tuple[int, ...] | None) -> int:
    """Input pixels along one side of a pixel that a stem puts out; 1 without a stem."""
    return 1 if stem is None else ROOT_STRIDE * 2 ** max(len(stem) - 1, 0)


def as_pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """Height and width from one number or two; what is neither is left for the configuration to refuse."""
    if isinstance(value, int):
        return value, value
    return tuple(value)  # type: ignore[return-value]


def by(pair: tuple[int, int]) -> str:
    """A pair as people write it: 224x192."""
    return f"{pair[0]}x{pair[1]}"


def _to_dict(kind: str, config: ModelConfig) -> dict[str, Any]:
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}
    return {"kind": kind, **plain}


def _checked_values(cls: type[ViTConfig] | type[BiTConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    given = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in values.items()
        if key != "kind"
    }
    known = fields(cls)
    for key in given:
        check_known("key of the model configuration", key, [field.name for field in known])
    missing = [field.name for field in known if field.default is MISSING and field.name not in given]
    if missing:
        raise ValueError(f"model configuration lacks {', '.join(missing)}; add what is missing")
    return given


def _check_words(config: ViTConfig) -> None:
    for field, allowed in _WORDS.items():
        check_word(field, getattr(config, field), allowed)

"""A foreign layout as a list: which of their tensors hold which of our parameters, and how.

Every layout module gives `entries(config)`, one `Entry` for each of our parameters. Both directions follow
from the same list, so what is written can always be read back, bit for bit. Nothing here touches a file.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.config import BiTConfig, ModelConfig, ViTConfig
from model.weights.files import check_keys

Shape = tuple[int, ...]
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True, slots=True)
class Entry:
    """One of our parameters and the tensors of theirs that hold it."""

    ours: str
    theirs: tuple[str, ...]
    shapes: tuple[Shape, ...]  # of theirs
    unpack: Callable[[Sequence[Tensor]], Tensor]  # theirs to ours
    pack: Callable[[Tensor], Sequence[Tensor]]  # ours to theirs


@dataclass(frozen=True, slots=True)
class Facts:
    """What the tensors of a file tell about their model; None is what the file does not say."""

    width: int = 0
    depth: int = 0
    mlp: int = 0
    patch: tuple[int, int] = (1, 1)
    heads: int | None = None
    tokens: int | None = None  # rows of the position table
    class_token: bool = True
    attention_pool: bool = False
    qk_norm: bool = False
    representation: bool = False
    num_classes: int | None = None
    stem: tuple[int, ...] | None = None
    bit_blocks: tuple[int, ...] | None = None  # residual units of each stage, if the model is a BiT ResNet
    bit_width: int = 1


def same(ours: str, theirs: str, shape: Sequence[int]) -> Entry:
    """A tensor that is kept as it is."""
    return Entry(ours, (theirs,), (tuple(shape),), lambda parts: parts[0], lambda whole: [whole])


def permuted(ours: str, theirs: str, shape: Sequence[int], *axes: int) -> Entry:
    """A tensor whose axes they order otherwise: ours = theirs.permute(axes). `shape` is ours."""
    back = [axes.index(axis) for axis in range(len(axes))]
    theirs_shape = tuple(shape[axis] for axis in back)
    return Entry(
        ours,
        (theirs,),
        (theirs_shape,),
        lambda parts: parts[0].permute(axes),
        lambda whole: [whole.permute(back)],
    )


def reshaped(ours: str, theirs: str, shape: Sequence[int], theirs_shape: Sequence[int]) -> Entry:
    """A tensor with the same numbers in the same order under another shape."""
    return Entry(
        ours,
        (theirs,),
        (tuple(theirs_shape),),
        lambda parts: parts[0].reshape(*shape),
        lambda whole: [whole.reshape(*theirs_shape)],
    )


def stacked(ours: str, theirs: Sequence[str], shape: Sequence[int]) -> Entry:
    """Several tensors that we keep as one, cut along the first axis; `shape` is of one of them."""
    return Entry(
        ours,
        tuple(theirs),
        (tuple(shape),) * len(theirs),
        lambda parts: torch.cat(list(parts)),
        lambda whole: whole.chunk(len(theirs)),
    )


def convert_in(
    entries: Iterable[Entry],
    tensors: Mapping[str, Tensor],
    *,
    zero_head: tuple[int, int, float] | None = None,
) -> dict[str, Tensor]:
    """Our state (float32) from their tensors.

    Raises one ValueError that names every tensor that is missing, unexpected or of the wrong shape.
    `zero_head` (classes, features, bias) takes the place of a head that the file does not have.
    """
    entries = [entry for entry in entries if zero_head is None or entry.ours not in HEAD]
    expected = {
        key: shape for entry in entries for key, shape in zip(entry.theirs, entry.shapes, strict=True)
    }
    check_keys(expected, {key: tuple(value.shape) for key, value in tensors.items()})
    state = {
        entry.ours: entry.unpack([tensors[key].float() for key in entry.theirs]).contiguous()
        for entry in entries
    }
    if zero_head is not None:
        classes, features, bias = zero_head
        state |= {"head.weight": torch.zeros(classes, features), "head.bias": torch.full((classes,), bias)}
    return state


def convert_out(entries: Iterable[Entry], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from our state; raises ValueError naming every key of ours that does not fit."""
    entries = list(entries)
    check_keys(
        {entry.ours: None for entry in entries}, {key: tuple(value.shape) for key, value in state.items()}
    )
    return {
        key: part.contiguous()
        for entry in entries
        for key, part in zip(entry.theirs, entry.pack(state[entry.ours]), strict=True)
    }


def linear(ours: str, theirs: str, *shape: int) -> list[Entry]:
    """Weight and bias of a layer kept as it is; `shape` is the weight's, the bias has its first axis."""
    weight, bias = f"{theirs}.weight", f"{theirs}.bias"
    return [same(f"{ours}.weight", weight, shape), same(f"{ours}.bias", bias, shape[:1])]


@dataclass(frozen=True, slots=True)
class Room:
    """What a layout has a place for, beyond the plain Vision Transformer."""

    layout: str
    stem: bool = False
    representation: bool = False
    qk_norm: bool = False
    pools: tuple[str, ...] = ("token",)
    positions: tuple[str, ...] = ("learned",)

    def check(self, config: ViTConfig) -> None:
        """Refuse a model that does not fit, naming everything that is in the way."""
        in_the_way = [
            text
            for text, found in (
                ("a convolutional stem", config.stem is not None and not self.stem),
                ("a hidden layer before the head", config.representation and not self.representation),
                ("normalised queries and keys", config.qk_norm and not self.qk_norm),
                (f"pool {config.pool!r}", config.pool not in self.pools),
                (f"positions {config.positions!r}", config.positions not in self.positions),
                (f"positions at {config.positions_at!r}", config.positions_at != "stem"),
            )
            if found
        ]
        if in_the_way:
            raise ValueError(
                f"model {config.name!r} has {', '.join(in_the_way)}, for which the {self.layout} layout has "
                "no place; keep it in a weight file of this program, or choose another layout"
            )


def as_vit(config: ModelConfig, layout: str) -> ViTConfig:
    """The configuration, if it is a Vision Transformer's; otherwise ValueError."""
    if isinstance(config, BiTConfig):
        raise ValueError(
            f"the {layout} layout has no BiT ResNets, found {config.name!r}; use the npz or timm layout"
        )
    return config


def count_parts(keys: Iterable[str], prefix: str, separator: str = ".") -> int:
    """How many different names follow `prefix` up to the next separator."""
    return len({key[len(prefix) :].split(separator)[0] for key in keys if key.startswith(prefix)})


def stem_units(config: ViTConfig | BiTConfig) -> list[tuple[int, int, int]]:
    """Flat number, stage and place in the stage of every residual unit, all from 0."""
    blocks = config.blocks if isinstance(config, BiTConfig) else config.stem or ()
    places = [(stage, unit) for stage, units in enumerate(blocks) for unit in range(units)]
    return [(flat, stage, unit) for flat, (stage, unit) in enumerate(places)]

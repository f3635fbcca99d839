"""Weights of other libraries, in and out.

    in    file -> tensors -> which layout -> which model -> our state, all of it or an error that names every
    misfit out   our state -> tensors under their names -> file (.npz, or .safetensors, or .pth for PyTorch
    readers)

No pickle is trusted: `.npz` is opened with `allow_pickle=False`, PyTorch files with `weights_only=True`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.checks import check_known
from model.config import ModelConfig, ViTConfig
from model.weights import huggingface, npz, timm, torchvision
from model.weights.files import read_tensors, write_tensors, written_whole
from model.weights.infer import config_of
from model.weights.layout import Facts, convert_in, convert_out

LAYOUTS: Mapping[str, ModuleType] = {layout.NAME: layout for layout in (npz, timm, torchvision, huggingface)}
TORCH_SUFFIXES = (".pth", ".pt", ".bin")


@dataclass(frozen=True, slots=True)
class Imported:
    """What came out of a foreign file."""

    state: dict[str, Tensor]  # float32, under our names
    config: ModelConfig
    layout: str
    notes: list[str]  # what a person should know: no head, a head of zeros
    resize_rule: str  # how that library resizes position tables, for `adapt`


def import_weights(
    path: str | Path,
    *,
    layout: str | None = None,
    name: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> Imported:
    """Read a file of another library.

    What is not given is read from the tensors: the layout from their names, the model and its classes from
    their shapes, the image size (pixels) from the position table, taken to be square. A file without a head
    gets one of zeros, for `num_classes` or 1000 classes. Raises ValueError naming every tensor that is
    missing, unexpected or misshapen.
    """
    tensors = read_foreign(path)
    source = _layout_of(tensors, layout, path)
    tensors = source.normalise(tensors)
    facts: Facts = source.facts(tensors)
    classes = num_classes or facts.num_classes or 1000
    conventions = source.VIT_CONVENTIONS if facts.bit_blocks is None else source.BIT_CONVENTIONS
    options = {**conventions, **options}
    config = config_of(facts, name=name, image_size=image_size, num_classes=classes, options=options)
    zero_head = None if facts.num_classes is not None else (classes, config.feature_width, config.head_bias)
    state = convert_in(source.entries(config), tensors, zero_head=zero_head)
    notes = _notes(state, zero_head is not None)
    return Imported(state, config, source.NAME, notes, source.RESIZE_RULE)


def export_weights(path: str | Path, layout: str, state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Write a state under another library's names; the suffix of `path` decides the kind of file.

    Raises ValueError for a layout that has no place for the model and for a suffix the layout's readers do
    not open.
    """
    check_known("layout", layout, LAYOUTS)
    path = Path(path)
    allowed = (".npz",) if layout == npz.NAME else (".safetensors", *TORCH_SUFFIXES)
    if path.suffix not in allowed:
        raise ValueError(
            f"{path.name} does not end in {' or '.join(allowed)}, which layout {layout!r} needs; rename it"
        )
    if layout == huggingface.NAME and isinstance(config, ViTConfig) and config.representation:
        raise ValueError(
            f"model {config.name!r} has a hidden layer before the head, which ViTForImageClassification "
            "would leave out; adapt the weights to a plain head first, or choose another layout"
        )
    tensors = convert_out(LAYOUTS[layout].entries(config), state)
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, {"format": "pt"})
        return
    with written_whole(path) as beside, beside.open("wb") as handle:
        if layout == npz.NAME:
            np.savez(handle, **_arrays(npz.denormalise(tensors)))
        else:
            torch.save(tensors, handle)


def read_foreign(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.npz`, `.safetensors` or PyTorch file, on the CPU; ValueError for anything else."""
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(
            f"{path.name} ends in {path.suffix!r}, expected .npz, .safetensors or "
            f"{', '.join(TORCH_SUFFIXES)}; rename it"
        )
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, and other people's pickles are not run; load it where it was "
            "made and save its state_dict"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a state_dict; save that")
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: value.cpu().numpy() for key, value in tensors.items()}


def _read_npz(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}; check the path")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: _read_array(arrays, key, path) for key in arrays.files}


def _read_array(arrays: Any, key: str, path: Path) -> Tensor:
    try:
        array = arrays[key]
    except ValueError as error:  # NumPy refuses objects, which are pickles
        raise ValueError(
            f"{key} of {path} holds Python objects, and other people's pickles are not run; save the arrays "
            "alone"
        ) from error
    # A member of the archive that is not an .npy comes as its bytes.
    kind = getattr(array, "dtype", None)
    if kind is None or not (kind.kind in "fiub" or (kind.kind == "V" and kind.itemsize == 2)):
        raise ValueError(
            f"{key} of {path} holds {type(array).__name__ if kind is None else kind}, expected an array of "
            "numbers; leave it out of the file"
        )
    return _to_tensor(array)


def _to_tensor(array: Any) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # bfloat16, which NumPy keeps as raw bytes
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _layout_of(tensors: Mapping[str, Tensor], layout: str | None, path: str | Path) -> ModuleType:
    if layout is not None:
        check_known("layout", layout, LAYOUTS)
        return LAYOUTS[layout]
    for source in LAYOUTS.values():
        if source.recognise(tensors):
            return source
    some = ", ".join(list(tensors)[:5])
    raise ValueError(
        f"{path} has none of the layouts {', '.join(LAYOUTS)} (its first tensors are {some}); give a file of "
        "one of these libraries"
    )


def _notes(state: Mapping[str, Tensor], without_head: bool) -> list[str]:
    if without_head:
        return ["the file has no head; one of zeros was put in its place: fine-tune before classifying"]
    if not state["head.weight"].any():
        return [
            "the head in the file is all zero, as in the published ImageNet-21k files: fine-tune before "
            "classifying"
        ]
    return []

"""Writes a weight file of ours with no more than one tensor in memory.

safetensors' own `save_file` wants all tensors at once; the format needs no more than their shapes in advance
(model/tensor_header.py).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.tensor_header import header_bytes
from model.weights.files import header_of, written_whole

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_STRIDE = 64 * 2**20  # bytes written at a time


def stream_weights(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    load: Callable[[str], Tensor],
    config: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a file as `save_weights` does, whole or not at all.

    Args:
        tensors: what to write. One on the meta device says shape and dtype alone.
        load: gives the content of such a one by its name, when its turn has come; it is dropped after.
    """
    # Larger elements first, so that each tensor starts at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    with written_whole(path) as beside, beside.open("wb", buffering=0) as file:
        entries = ((name, _NAMES[t.dtype], t.shape, t.nbytes) for name in names for t in [tensors[name]])
        file.write(header_bytes(entries, header_of(config, extra)))
        for name in names:
            _write(file.write, _content(name, tensors[name], load))


def _content(name: str, tensor: Tensor, load: Callable[[str], Tensor]) -> Tensor:
    found = load(name) if tensor.is_meta else tensor
    assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), f"{name} is not as announced"
    return found.detach().cpu().contiguous()


def _write(write: Callable[[memoryview], int], tensor: Tensor) -> None:
    raw = tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else memoryview(b"")
    start = 0
    while start < len(raw):
        start += write(raw[start : start + _STRIDE])

"""Writes a safetensors file in one pass, with its hash, without holding the interpreter lock.

safetensors' own `save_file` copies every tensor to a bytes object first and must be read back to be hashed;
here each tensor goes from its memory to the file and into the hash. Any safetensors reader reads the
result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from model.tensor_header import header_bytes

if TYPE_CHECKING:
    # Its tensors are only asked for their memory; the driver hashes files and has no PyTorch.
    import torch

_STRIDE = 64 * 2**20  # bytes written and hashed at a time


@dataclass(frozen=True)
class Written:
    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Written:
    """Write float32 tensors (1-d, contiguous, on the CPU) beside `path`, flush, rename."""
    header = _header(tensors)
    digest = hashlib.sha256(header)
    size = len(header)
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb", buffering=0) as file:
        file.write(header)
        for tensor in tensors.values():
            raw = tensor.numpy().data.cast("B") if tensor.numel() else memoryview(b"")
            for start in range(0, len(raw), _STRIDE):
                part = raw[start : start + _STRIDE]
                _write_all(file.fileno(), part)
                digest.update(part)
            size += len(raw)
        os.fsync(file.fileno())
    beside.replace(path)
    return Written(size, digest.hexdigest())


def hash_file(path: Path) -> Written:
    """Size and hash of what `path` holds now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Written(file.tell(), digest)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    for key, tensor in tensors.items():
        assert str(tensor.dtype) == "torch.float32", f"{key} is {tensor.dtype}, fragments are float32"
        assert tensor.is_contiguous(), f"{key} is not contiguous"
    return header_bytes((key, "F32", tensor.shape, tensor.nbytes) for key, tensor in tensors.items())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

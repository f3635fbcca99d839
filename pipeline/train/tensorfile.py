"""Writes a safetensors file in one pass, with the hashes of its blocks, without holding the interpreter lock.

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
from pipeline.train.blocks import BLOCK, Blocks, Hasher

if TYPE_CHECKING:
    # Its tensors are only asked for their memory; the driver hashes files and has no PyTorch.
    import torch


@dataclass(frozen=True)
class Written:
    """A file, and the byte at which each tensor stands in it."""

    blocks: Blocks
    at: dict[str, int]


@dataclass(frozen=True)
class Identity:
    """What a file is known by wherever it lies."""

    bytes: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> Written:
    """Write float32 tensors (1-d, contiguous, on the CPU) beside `path`, flush, rename."""
    header = _header(tensors)
    hasher = Hasher()
    size, at = len(header), {}
    beside = path.with_name(f".{path.name}.partial")
    with beside.open("wb", buffering=0) as file:
        file.write(header)
        hasher.update(memoryview(header))
        for key, tensor in tensors.items():
            raw = tensor.numpy().data.cast("B") if tensor.numel() else memoryview(b"")
            at[key] = size
            size += len(raw)
            # A block at a time: what was just read to be written is hashed from the cache.
            for start in range(0, len(raw), BLOCK):
                part = raw[start : start + BLOCK]
                _write_all(file.fileno(), part)
                hasher.update(part)
        os.fsync(file.fileno())
    beside.replace(path)
    return Written(hasher.blocks(), at)


def hash_file(path: Path) -> Identity:
    """Size and SHA-256 of what `path` holds now."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Identity(file.tell(), digest)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    for key, tensor in tensors.items():
        assert str(tensor.dtype) == "torch.float32", f"{key} is {tensor.dtype}, fragments are float32"
        assert tensor.is_contiguous(), f"{key} is not contiguous"
    return header_bytes((key, "F32", tensor.shape, tensor.nbytes) for key, tensor in tensors.items())


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]

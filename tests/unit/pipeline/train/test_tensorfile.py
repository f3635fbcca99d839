import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.train.blocks import BLOCK, blocks_of
from pipeline.train.tensorfile import hash_file, write_tensors


def test_the_library_reads_what_we_write_and_the_index_says_where(tmp_path: Path) -> None:
    long = BLOCK // 4 + 77
    tensors = {"a|master|0": torch.randn(1001), "empty": torch.empty(0), "b": torch.arange(float(long))}
    path = tmp_path / "x.safetensors"
    written = write_tensors(path, tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert written.blocks == blocks_of(path)
    assert os.listdir(tmp_path) == ["x.safetensors"]
    data = path.read_bytes()
    for key, tensor in tensors.items():
        assert data[written.at[key] :][: 4 * len(tensor)] == tensor.numpy().tobytes(), key


def test_a_file_is_known_by_its_size_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"weights")
    found = hash_file(tmp_path / "x")
    assert (found.bytes, found.sha256) == (7, hashlib.sha256(b"weights").hexdigest())


def test_fragments_are_float32_and_contiguous(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="fragments are float32"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(3, dtype=torch.bfloat16)})
    with pytest.raises(AssertionError, match="not contiguous"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(6)[::2]})

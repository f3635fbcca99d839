import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.train.tensorfile import hash_file, write_tensors


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    tensors = {"a|master|0": torch.randn(1001), "empty": torch.empty(0), "b": torch.arange(4.0)}
    path = tmp_path / "x.safetensors"
    written = write_tensors(path, tensors)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert written.bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert hash_file(path) == written
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_tensors_larger_than_a_stride(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.train.tensorfile._STRIDE", 100)
    written = write_tensors(tmp_path / "x", {"a": torch.arange(1000.0)})
    assert hash_file(tmp_path / "x") == written
    assert torch.equal(load_file(tmp_path / "x")["a"], torch.arange(1000.0))


def test_fragments_are_float32_and_contiguous(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="fragments are float32"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(3, dtype=torch.bfloat16)})
    with pytest.raises(AssertionError, match="not contiguous"):
        write_tensors(tmp_path / "x", {"a": torch.zeros(6)[::2]})

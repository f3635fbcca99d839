from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.files import file_reader
from pipeline.data.index import chunk_digest, finish, load_index, read_blocks, save_index
from pipeline.data.scan import Scan, scan
from pipeline.errors import DataError

from .conftest import samples


def _scan(path: Path, names: dict[str, int] | None = None) -> Scan:
    with file_reader(path) as read_at:
        return scan(str(path), path.stat().st_size, read_at, names or {})


def test_offsets_labels_and_keys(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    content = [
        ("./d/x.JPEG", b"J" * 600),
        ("./d/x.cls", b" 4\n"),
        ("d/y.png", b""),
        ("d/y.json", b'{"label": 2}'),
    ]
    path = write_tar("x.tar", [*content, ("._d/junk", b"x"), ("d/z.webp", b"W"), ("d/z.txt", b"cat")])
    found = _scan(path, {"dog": 0, "cat": 1, "a": 2, "b": 3, "c": 4})
    index, sha256 = finish(found, 2, read_blocks(path))
    assert [index.key(row) for row in range(3)] == ["d/x", "d/y", "d/z"]
    assert index.label.tolist() == [4, 2, 1]
    data = path.read_bytes()
    assert [data[o : o + s] for o, s in zip(index.offset, index.size, strict=True)] == [b"J" * 600, b"", b"W"]
    assert sha256 == hashlib.sha256(data).hexdigest()
    save_index(tmp_path / "x.npz", index)
    loaded = load_index(tmp_path / "x.npz", 3)
    assert all(np.array_equal(getattr(index, name), getattr(loaded, name)) for name in index.__slots__)


def test_chunks_cut_the_shard_without_gaps(write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", samples(10))
    index, _ = finish(_scan(path), 4, read_blocks(path))
    data, start = path.read_bytes(), 0
    for number, end in enumerate(index.chunk_end):
        inside = slice(4 * number, 4 * number + 4)
        assert np.all(index.offset[inside] >= start)
        assert np.all(index.offset[inside] + index.size[inside] <= end)
        assert index.chunk_hash[number].tobytes() == chunk_digest(data[start:end])
        start = int(end)
    assert len(index.chunk_end) == 3


def test_a_damaged_index_is_one_message(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match="no such file"):
        load_index(path, 3)
    path.write_bytes(b"PK\x03\x04nonsense")
    with pytest.raises(DataError, match="not an index"):
        load_index(path, 3)
    np.savez(path, offset=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(DataError, match="not an index"):
        load_index(path, 1)
    tar = write_tar("x.tar", samples(2))
    save_index(path, finish(_scan(tar), 1, read_blocks(tar))[0])
    with pytest.raises(DataError, match="2 samples at"):
        load_index(path, 3)

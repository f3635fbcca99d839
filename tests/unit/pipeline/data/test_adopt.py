from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.config import DataView, WebdatasetSource
from pipeline.data.braces import expand_braces
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, UserError

from .conftest import image_bytes, samples


def test_braces() -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"]
    assert expand_braces("{10..8}") == ["10", "9", "8"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def _source(tmp_path: Path, **more: object) -> WebdatasetSource:
    return WebdatasetSource(
        source="webdataset", train=f"{tmp_path}/t-{{0..1}}.tar", test=f"{tmp_path}/e.tar", **more
    )


def test_shards_of_the_webdataset_package_are_adopted_in_place(tmp_path: Path) -> None:
    for name, count in (("t-0", 5), ("t-1", 3), ("e", 2)):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for n in range(count):
                tar.write(
                    {"__key__": f"k{n}", "png": image_bytes("PNG", seed=n), "cls": n % 3, "json": {"a": 1}}
                )
    before = (tmp_path / "t-0.tar").read_bytes()
    manifest = prepare(_source(tmp_path), tmp_path / "out")
    assert manifest.classes == ("0", "1", "2")
    view = open_view(DataView(path="out", split="train"), tmp_path)
    assert view.labels().tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert view.key(6) == "k1"
    shard, row = view.store.rows.locate(np.array([6]))
    assert view.store.read(int(shard[0]), int(row[0])) == image_bytes("PNG", seed=1)
    assert (tmp_path / "t-0.tar").read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out/train").iterdir()) == ["000000.npz", "000001.npz"]


def test_class_names(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    for name in ("t-0", "t-1", "e"):
        write_tar(
            f"{name}.tar",
            [("x.jpg", image_bytes()), ("x.txt", b"dog"), ("y.jpg", image_bytes()), ("y.cls", b"0")],
        )
    manifest = prepare(_source(tmp_path, classes=("cat", "dog")), tmp_path / "out")
    assert manifest.classes == ("cat", "dog")
    assert open_view(DataView(path="out", split="test"), tmp_path).labels().tolist() == [1, 0]


def test_messages(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    write_tar("t-0.tar", samples(3))
    with pytest.raises(UserError, match=r"no shard .*t-1\.tar"):
        prepare(_source(tmp_path), tmp_path / "out")
    write_tar("t-1.tar", samples(3))
    write_tar("e.tar", [])
    with pytest.raises(DataError, match=r"no samples in .*e\.tar"):
        prepare(_source(tmp_path), tmp_path / "out")
    write_tar("e.tar", [("x.jpg", image_bytes()), ("x.cls", b"3")])
    with pytest.raises(DataError, match="label 3 in test, but no label above 2 in train"):
        prepare(_source(tmp_path), tmp_path / "out")

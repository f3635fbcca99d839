from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipeline.config import DataView, WebdatasetSource
from pipeline.data.braces import expand_braces
from pipeline.data.manifest import load_manifest
from pipeline.data.verify import verify
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


def _damaged(write_tar: Callable[..., Path]) -> None:
    """Train: 6 whole samples, a key that comes twice, one without a label, and a shard that is cut off."""
    one = samples(6)
    write_tar("t-0.tar", [*one[:4], *one[:2], *one[4:], ("last.jpg", image_bytes())])
    path = write_tar("t-1.tar", samples(5))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"0003.jpg") + 700])
    write_tar(
        "e.tar", [("x.jpg", image_bytes()), ("x.cls", b"cat"), ("y.jpg", image_bytes()), ("y.cls", b"1")]
    )


def test_all_faults_of_all_shards_are_named_at_once(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    _damaged(write_tar)
    with pytest.raises(DataError, match="4 faults in the shards") as caught:
        prepare(_source(tmp_path), tmp_path / "out")
    _, *lines = caught.value.found.splitlines()
    for line, words in zip(
        lines,
        (
            "t-0.tar: 0000 comes a second time",
            "t-0.tar: last has no label",
            "t-1.tar is cut off: '0003.jpg' needs",
            "'cat' in ",
        ),
        strict=True,
    ):
        assert words in line
    assert "--allow-damaged" in caught.value.do
    assert not (tmp_path / "out/manifest.json").exists()


def test_what_is_whole_is_adopted_if_that_is_allowed(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    _damaged(write_tar)
    manifest = prepare(_source(tmp_path, allow_damaged=True), tmp_path / "out")
    assert load_manifest(tmp_path / "out") == manifest
    view = open_view(DataView(path="out", split="train"), tmp_path)
    assert [view.key(n) for n in range(view.samples)] == [f"{n:04d}" for n in [*range(6), *range(3)]]
    assert [view.read(n) for n in range(9)] == [image_bytes(seed=n % 6) for n in range(9)]
    assert [(Path(bad.key).name, bad.reason[:22]) for bad in manifest.splits["train"].bad] == [
        ("t-0.tar", "0000 comes a second ti"),
        ("t-0.tar", "last has no label amon"),
        ("t-1.tar", "is cut off: '0003.jpg'"),
    ]
    assert manifest.splits["test"].samples == 1
    found = verify(tmp_path / "out")
    assert (found.samples, found.known, found.problems) == (10, 4, ())


def test_a_shard_cut_off_anywhere_gives_its_whole_samples(
    tmp_path: Path, write_tar: Callable[..., Path]
) -> None:
    content = samples(4)
    path = write_tar("t-0.tar", content)
    write_tar("t-1.tar", content)
    write_tar("e.tar", content)
    data = path.read_bytes()
    ends = [data.index(f"{n:04d}.cls".encode()) + 512 + 1 for n in range(4)]
    for size in range(0, ends[-1] + 600, 251):
        path.write_bytes(data[:size])
        manifest = prepare(_source(tmp_path, allow_damaged=True), tmp_path / "out")
        train = manifest.splits["train"]
        assert train.samples == 4 + sum(end <= size for end in ends), size
        assert train.bad
        assert verify(tmp_path / "out").problems == ()


def test_thousands_of_faults_end_the_search(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    many = [(f"{n:04d}.cls", b"1") for n in range(1500)]
    for name in ("t-0", "t-1", "e"):
        write_tar(f"{name}.tar", many)
    with pytest.raises(DataError, match=r"1500 faults in the shards") as caught:
        prepare(_source(tmp_path), tmp_path / "out")
    assert len(caught.value.found.splitlines()) == 22
    assert caught.value.found.endswith("and 1480 more")


def test_where_json_holds_no_label_txt_does(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    """As img2dataset writes them: the caption, and where the image comes from."""
    about = b'{"caption": "dog", "url": "http://x/1.jpg", "width": 12}'
    for name in ("t-0", "t-1", "e"):
        write_tar(
            f"{name}.tar",
            [("0.jpg", image_bytes()), ("0.json", about), ("0.txt", b"dog"), ("1.jpg", image_bytes()),
             ("1.json", b'{"label": 0}'), ("1.txt", b"dog")],
        )  # fmt: skip
    prepare(_source(tmp_path, classes=("cat", "dog")), tmp_path / "out")
    assert open_view(DataView(path="out", split="test"), tmp_path).labels().tolist() == [1, 0]

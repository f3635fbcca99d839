from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import WebdatasetSource
from pipeline.data.verify import verify
from pipeline.data.write import prepare
from pipeline.errors import DataError

from .conftest import image_bytes, samples


@pytest.fixture
def copy(glyphs: Path, tmp_path: Path) -> Path:
    shutil.copytree(glyphs, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_whole_dataset(glyphs: Path) -> None:
    found = verify(glyphs)
    assert (found.samples, found.known, found.problems) == (156, 0, ())


def _flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def _edit_index(path: Path) -> None:
    with np.load(path) as file:
        arrays = dict(file)
    arrays["label"][3] += 1
    np.savez(path, **arrays)


@pytest.mark.parametrize("damage, shard, reason", [
    (lambda d: (d / "train/000001.tar").unlink(), "000001.tar", "No such file"),
    (lambda d: _flip(d / "train/000002.tar", 700), "000002.tar", "SHA-256"),
    (lambda d: (d / "test/000000.tar").write_bytes(b"x" * 100), "000000.tar", "100 bytes"),
    (lambda d: (d / "train/000003.npz").unlink(), "000003.tar", "no such file"),
    (lambda d: _edit_index(d / "train/000004.npz"), "000004.tar", "the index differs in label"),
])  # fmt: skip
def test_damage_is_named_and_the_rest_is_checked(
    copy: Path, damage: Callable, shard: str, reason: str
) -> None:
    damage(copy)
    found = verify(copy)
    (problem,) = found.problems
    assert problem.shard.endswith(shard)
    assert reason in problem.reason
    assert found.samples == 156


def test_images_that_cannot_be_decoded(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    path = write_tar("x.tar", [*samples(3), ("z.jpg", b"<html>"), ("z.cls", b"0")])
    prepare(WebdatasetSource(source="webdataset", train=str(path), test=str(path)), tmp_path / "out")
    assert {(p.split, p.key, p.reason) for p in verify(tmp_path / "out").problems} == {
        ("train", "z", "not an image"),
        ("test", "z", "not an image"),
    }
    assert verify(tmp_path / "out", images=False).problems == ()


def test_labels_that_are_names(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    path = write_tar(
        "x.tar", [("a.jpg", image_bytes()), ("a.txt", b"dog"), ("b.jpg", image_bytes()), ("b.cls", b"0")]
    )
    settings = WebdatasetSource(source="webdataset", train=str(path), test=str(path), classes=("cat", "dog"))
    prepare(settings, tmp_path / "out")
    assert verify(tmp_path / "out").problems == ()


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no manifest"):
        verify(tmp_path)

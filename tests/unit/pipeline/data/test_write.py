from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.config import DataView, FolderSource, GlyphsSource, WriteSettings
from pipeline.data.jpeg_part import cut_part
from pipeline.data.manifest import load_manifest
from pipeline.data.progress import Run
from pipeline.data.shards import member_key
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, UserError

from .conftest import PHOTOS, image_bytes


def _folder(root: Path, files: dict[str, bytes]) -> FolderSource:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return FolderSource(source="folder", path=str(root))


def _two_classes(**more: bytes) -> dict[str, bytes]:
    names = [
        f"{split}/{label}/{n}.jpg" for split in ("train", "test") for label in ("a", "b") for n in range(3)
    ]
    return {name: image_bytes(seed=n) for n, name in enumerate(names)} | more


def test_the_webdataset_package_reads_what_we_wrote(glyphs: Path) -> None:
    manifest = load_manifest(glyphs)
    view = open_view(DataView(path=".", split="train"), glyphs)
    read = []
    for shard in manifest.splits["train"].shards:
        read += list(webdataset.WebDataset(str(glyphs / shard.name), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == [view.key(n) for n in range(130)]
    assert [int(sample["cls"]) for sample in read] == view.labels().tolist()
    shard, row = view.store.rows.locate(np.arange(130))
    assert [sample["jpg"] for sample in read] == [
        view.store.read(int(s), int(r)) for s, r in zip(shard, row, strict=True)
    ]


def test_shards_chunks_and_shuffling(glyphs: Path) -> None:
    train = load_manifest(glyphs).splits["train"]
    assert [shard.samples for shard in train.shards] == [30, 30, 30, 30, 10]
    assert 1 < train.chunk < 30
    labels = open_view(DataView(path=".", split="train"), glyphs).labels()
    assert len(np.unique(labels[:30])) > 8
    assert sorted(path.name for path in glyphs.iterdir()) == ["manifest.json", "test", "train"]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    settings = GlyphsSource(source="glyphs", classes=3, train_per_class=4, test_per_class=1)
    first, second = prepare(settings, tmp_path / "a"), prepare(settings, tmp_path / "b")
    assert first == second
    assert prepare(settings.model_copy(update={"seed": 1}), tmp_path / "b").fingerprint != first.fingerprint


def test_bytes_of_photos_stay_unchanged(tmp_path: Path) -> None:
    prepare(FolderSource(source="folder", path=str(PHOTOS)), tmp_path)
    view = open_view(DataView(path=".", split="test"), tmp_path)
    assert (view.samples, view.num_classes) == (80, 8)
    originals = {path.read_bytes(): path.parent.name for path in (PHOTOS / "test").rglob("*.jpg")}
    shard, row = view.store.rows.locate(np.arange(80))
    read = [view.store.read(int(s), int(r)) for s, r in zip(shard, row, strict=True)]
    assert set(read) == set(originals)
    assert [originals[data] for data in read] == [view.classes[label] for label in view.labels()]


def test_larger_images_are_resized_and_smaller_ones_are_not(tmp_path: Path) -> None:
    source = _folder(tmp_path / "in", _two_classes() | {"train/a/big.png": image_bytes("PNG", (300, 200))})
    settings = source.model_copy(update={"write": WriteSettings(shorter_side=50)})
    prepare(settings, tmp_path / "out")
    view = open_view(DataView(path=".", split="train"), tmp_path / "out")
    sizes = {view.key(n): Image.open(io.BytesIO(view.store.read(0, n))) for n in range(view.samples)}
    assert (sizes["a/big_png"].format, sizes["a/big_png"].size) == ("JPEG", (75, 50))
    assert sizes["a/0_jpg"].size == (12, 9)
    big = view.store.read(0, list(sizes).index("a/big_png"))
    part = cut_part(big, (20, 36, 8, 8))
    assert part is not None
    assert (part.top, part.left, part.height, part.width, part.exact) == (16, 32, 16, 16, True)
    assert (tmp_path / "in/train/a/0.jpg").read_bytes() == view.store.read(0, list(sizes).index("a/0_jpg"))


def test_unreadable_images_are_listed_not_written(tmp_path: Path) -> None:
    source = _folder(tmp_path / "in", _two_classes() | {"train/a/text.jpg": b"<html>"})
    manifest = prepare(source, tmp_path / "out")
    (bad,) = manifest.splits["train"].bad
    assert (bad.key, bad.reason) == ("a/text.jpg", "not an image")
    assert manifest.splits["train"].samples == 6
    assert (
        json.loads((tmp_path / "out/manifest.json").read_text())["splits"]["train"]["bad"][0]["key"]
        == "a/text.jpg"
    )


def test_a_class_of_one_unreadable_image_is_under_the_budget(tmp_path: Path) -> None:
    files = _two_classes() | {"train/c/x.jpg": b"no", "test/c/y.jpg": image_bytes()}
    manifest = prepare(_folder(tmp_path / "in", files), tmp_path / "out")
    assert manifest.classes == ("a", "b", "c")
    assert len(manifest.splits["train"].bad) == 1


def test_too_many_unreadable_images_stop(tmp_path: Path) -> None:
    files = _two_classes() | {"train/a/x.jpg": b"no", "train/b/y.jpg": b""}
    source = _folder(tmp_path / "in", files)
    with pytest.raises(DataError, match="2 of 8 images in split 'train' cannot be read") as caught:
        prepare(source, tmp_path / "out")
    assert "a/x.jpg: not an image" in caught.value.found
    assert "b/y.jpg: empty" in caught.value.found
    assert not (tmp_path / "out/manifest.json").exists()
    prepare(source.model_copy(update={"bad_images": 0.25}), tmp_path / "out")


@pytest.mark.parametrize("change, error, found", [
    (lambda root: (root / "test").rename(root / "elsewhere"), UserError, "no directory"),
    (lambda root: (root / "test/b").rename(root / "test/c"), UserError, r"only in test: \['c'\]"),
    (lambda root: [p.unlink() for p in root.glob("test/*/*")], DataError, "no images in split 'test'"),
    (lambda root: [p.write_bytes(b"?") for p in root.glob("test/*/*")], DataError, "6 of 6 images in"),
])  # fmt: skip
def test_bad_folders(tmp_path: Path, change, error: type[Exception], found: str) -> None:
    source = _folder(tmp_path / "in", _two_classes())
    change(tmp_path / "in")
    with pytest.raises(error, match=found):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_an_old_dataset_is_invisible_while_a_new_one_is_written(tmp_path: Path) -> None:
    settings = GlyphsSource(source="glyphs", classes=3, train_per_class=4, test_per_class=1)
    prepare(settings, tmp_path)
    (tmp_path / "job.json").write_text("{}")
    seen = []
    prepare(settings, tmp_path, report=lambda event: seen.append((tmp_path / "manifest.json").exists()))
    assert seen
    assert not any(seen)
    assert (tmp_path / "job.json").exists()


def test_progress_is_reported(tmp_path: Path) -> None:
    events: list = []
    prepare(
        GlyphsSource(source="glyphs", classes=3, train_per_class=4, test_per_class=1),
        tmp_path,
        report=events.append,
    )
    last = [event for event in events if event["split"] == "train"][-1]
    assert (last["event"], last["done"], last["total"], last["eta_s"]) == ("progress", 12, 12, 0)
    assert last["images_per_s"] > 0


class Interrupted(Exception):
    """Stands for a kill."""


def _slow(root: Path, count: int = 12) -> FolderSource:
    files = {
        f"{split}/{n % 2}/{n}.jpg": image_bytes(seed=n) for split in ("train", "test") for n in range(count)
    }
    return _folder(root, files).model_copy(update={"write": WriteSettings(shard_samples=3)})


def _stop_after(count: int) -> Run:
    """A `map` that is killed after `count` shards."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == count:
                raise Interrupted
            yield function(task)

    return run


def test_interrupted_writing_goes_on(tmp_path: Path) -> None:
    settings = _slow(tmp_path / "in")
    expected = prepare(settings, tmp_path / "whole")
    with pytest.raises(Interrupted):
        prepare(settings, tmp_path / "out", run=_stop_after(2))
    assert not (tmp_path / "out/manifest.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/.partial/train").glob("*.tar")}
    assert sorted(kept) == ["000000.tar", "000001.tar"]
    assert prepare(settings, tmp_path / "out") == expected
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/train").glob("*.tar")}
    assert kept.items() <= written.items()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "test", "train"]


def test_shards_of_other_settings_or_files_are_not_taken_over(tmp_path: Path) -> None:
    settings = _slow(tmp_path / "in")
    for change in ("seed", "files"):
        with pytest.raises(Interrupted):
            prepare(settings, tmp_path / "out", run=_stop_after(2))
        if change == "seed":
            settings = settings.model_copy(update={"seed": 9})
        else:
            (tmp_path / "in/train/0/0.jpg").write_bytes(image_bytes(size=(40, 40), seed=77))
        assert prepare(settings, tmp_path / "out") == prepare(settings, tmp_path / "whole")


def test_processes_write_the_same_dataset(tmp_path: Path) -> None:
    settings = _slow(tmp_path / "in")
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        assert prepare(settings, tmp_path / "a", run=pool.map) == prepare(settings, tmp_path / "b")


def test_a_disk_that_gives_back_something_else(tmp_path: Path) -> None:
    settings = _slow(tmp_path / "in")
    with pytest.raises(Interrupted):
        prepare(settings, tmp_path / "out", run=_stop_after(2))
    path = tmp_path / "out/.partial/train/000001.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"000001\.tar reads back as 3 samples with SHA-256"):
        prepare(settings, tmp_path / "out")


def test_member_keys() -> None:
    used: set[str] = set()
    assert member_key("a/x.y.jpg", 1, used) == "a/x_y_jpg"
    assert member_key("a/x_y.jpg", 2, used) == "a/x_y_jpg-2"
    long = member_key("ü" * 200 + "/z.jpg", 3, used)
    assert len(long.encode()) <= 100
    assert long.endswith("z_jpg-3")

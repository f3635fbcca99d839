"""`vitline data …` as a user types it; what the commands do is tested where it is done."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from launch.data_commands import data_app
from pipeline.config import DataView, FolderSource
from pipeline.data.manifest import load_manifest
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, UserError

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"


def vitline_data(*arguments: object) -> Result:
    result = CliRunner().invoke(data_app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photos")
    prepare(FolderSource(source="folder", path=str(PHOTOS)), directory / "photos")
    return directory / "photos"


def jpeg(data: bytes, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "jpeg", quality=quality)
    return buffer.getvalue()


def adopted(root: Path, name: str, images: dict[str, bytes]) -> Path:
    """A dataset whose train and test are these images."""
    with tarfile.open(root / f"{name}.tar", "w") as tar:
        for key, data in images.items():
            for member, content in ((f"{key}.jpg", data), (f"{key}.cls", b"0")):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    vitline_data("index", root / f"{name}.tar", root / f"{name}.tar", "--to", root / name)
    return root / name


def test_what_is_found_twice_is_listed_and_then_not_read(photos: Path, tmp_path: Path) -> None:
    view = open_view(DataView(path=".", split="train"), photos)
    first = adopted(tmp_path, "first", {"same": view.read(7), "worse": jpeg(view.read(33), 40)})
    second = adopted(tmp_path, "second", {"again": view.read(7), "other": jpeg(view.read(120), 40)})
    listed, sheet = tmp_path / "shared.json", tmp_path / "pairs.png"
    result = vitline_data(
        "duplicates", photos, first, second, "--exclude", listed, "--sheet", sheet, "--threads", 2
    )
    assert f"2 pairs with test of {first}, 1 the same bytes" in result.output
    assert f"train {view.key(7)} ~ test same: the same bytes" in result.output
    assert f"3 samples of train listed in {listed}" in result.output
    assert f"2 of 2 pairs drawn in {sheet}" in result.output
    assert sheet.is_file()
    assert (tmp_path / "pairs-2.png").is_file()

    kept = open_view(DataView(path=".", split="train", exclude=str(listed)), photos)
    ids = kept.sample_id(np.arange(kept.samples))
    assert sorted(set(range(view.samples)) - set(ids.tolist())) == [7, 33, 120]
    again = json.loads(vitline_data("duplicates", photos, first, second, "--json").output)
    assert [(pair["first"], pair["second_key"]) for pair in again] == [
        (7, "same"), (33, "worse"), (7, "again"), (120, "other")
    ]  # fmt: skip
    value = json.loads(listed.read_text())
    assert value["fingerprint"] == view.fingerprint
    assert [(other["pairs"], other["exact"], other["samples"]) for other in value["compared"]] == [
        (2, 1, 2), (2, 1, 2)
    ]  # fmt: skip


def test_nothing_found_is_said_and_listed_too(photos: Path, tmp_path: Path) -> None:
    grey = adopted(tmp_path, "grey", {"grey": jpeg(_gradient(), 90)})
    listed = tmp_path / "shared.json"
    result = vitline_data("duplicates", photos, grey, "--exclude", listed, "--sheet", tmp_path / "pairs.png")
    assert f"0 pairs with test of {grey}" in result.output
    assert json.loads(listed.read_text())["ids"] == []
    assert not (tmp_path / "pairs.png").exists()
    kept = open_view(DataView(path=".", split="train", exclude=str(listed)), photos)
    assert kept.samples == 160


def _gradient() -> bytes:
    pixels = np.add.outer(np.arange(120), np.arange(160)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """train.tar: two of three drawings whole, and the end missing; test.tar whole; both labelled by names."""
    members = []
    for number, name in enumerate(("cat", "dog", "cat")):
        members += [(f"{number}.jpg", jpeg(_gradient(), 90)), (f"{number}.cls", name.encode())]
    for split in ("train", "test"):
        _tar(tmp_path / f"{split}.tar", members)
    whole = (tmp_path / "train.tar").read_bytes()
    (tmp_path / "train.tar").write_bytes(whole[: whole.index(b"2.jpg") + 700])
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    return tmp_path


def test_damaged_shards_are_refused_by_name_or_adopted_in_part(damaged: Path) -> None:
    given = [damaged / "train.tar", damaged / "test.tar", "--to", damaged / "out"]
    given += ["--classes", damaged / "names.txt"]
    with pytest.raises(DataError, match=r"train\.tar is cut off: '2\.jpg' needs") as caught:
        vitline_data("index", *given)
    assert "--allow-damaged" in caught.value.do
    result = vitline_data("index", *given, "--allow-damaged")
    assert "train: 2" in result.output
    assert "left out: 1\n" in result.output
    assert "train.tar: is cut off: '2.jpg' needs" in result.output
    found = json.loads(vitline_data("index", *given, "--allow-damaged", "--json").output)
    assert [(bad["split"], Path(bad["key"]).name) for bad in found["left_out"]] == [("train", "train.tar")]
    assert "0 problems\n1 left out when" in vitline_data("verify", damaged / "out").output


def test_names_of_classes(damaged: Path) -> None:
    given = ["index", damaged / "test.tar", damaged / "test.tar", "--to", damaged / "out", "--classes"]
    for text, found in (("cat\ncat\n", "2 class names in .*, 1 of them different"), ("", "0 class names in")):
        (damaged / "wrong.txt").write_text(text)
        with pytest.raises(UserError, match=found):
            vitline_data(*given, damaged / "wrong.txt")
    with pytest.raises(UserError, match="no class names in"):
        vitline_data(*given, damaged / "nowhere.txt")
    vitline_data(*given, damaged / "names.txt")
    assert load_manifest(damaged / "out").classes == ("cat", "dog")


def test_what_is_shown_of_a_dataset(photos: Path, tmp_path: Path) -> None:
    text = vitline_data("show", photos, "--sheet", tmp_path / "sheet.png", "--batch", 32).output
    assert "classes: 8\n" in text
    assert "samples per class: 20 to 20\n" in text
    assert f"    watch      20  {'█' * 40}\n" in text
    assert "mixing of batches of 32:" in text
    assert "  worst_case: " in text
    assert Image.open(tmp_path / "sheet.png").size == (1152, 864)
    found = json.loads(vitline_data("show", photos, "--batch", 32, "--json").output)
    assert found["splits"]["test"]["per_class"] == [10] * 8
    assert found["mixing"].keys() == {"worst_case", "measured", "shards", "repeats"}


def test_problems_end_with_their_names(photos: Path, tmp_path: Path) -> None:
    assert "240 samples looked at, 0 problems" in vitline_data("verify", photos, "--parallel", 3).output
    shutil.copytree(photos, tmp_path / "copy")
    shard = tmp_path / "copy/test/000000.tar"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 problems in .*copy, the first: .*test/000000\.tar"):
        vitline_data("verify", tmp_path / "copy")

"""`vitline data …` as a user types it; what the commands do is tested where it is done."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from launch.data_commands import data_app
from pipeline.config import DataView, FolderSource
from pipeline.data.view import open_view
from pipeline.data.write import prepare

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

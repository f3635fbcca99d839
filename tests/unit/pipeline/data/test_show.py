from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from pipeline.config import DataView, OrderSettings, WebdatasetSource, WriteSettings
from pipeline.data.show import contact_sheet, mixing, summary
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare

from .conftest import image_bytes


def test_numbers(glyphs: Path, train_view: View, test_view: View) -> None:
    shown = summary(glyphs, {"train": train_view, "test": test_view})
    train = shown["splits"]["train"]
    assert (train["samples"], train["shards"], train["left_out"]) == (130, 5, [])
    assert train["per_class"] == [10] * 13
    assert train["image_sizes"] == {"height": [32, 32, 32], "width": [32, 32, 32]}
    assert train["bytes"] == sum(path.stat().st_size for path in (glyphs / "train").glob("*.tar"))


def test_sheet(train_view: View, tmp_path: Path) -> None:
    contact_sheet(tmp_path / "sheet.png", train_view, columns=6, rows=4, side=40)
    image = Image.open(tmp_path / "sheet.png")
    assert image.size == (240, 208)
    assert len(image.getcolors(maxcolors=100_000) or []) > 20


def test_sorted_shards_mix_worse_and_it_shows(write_tar: Callable[..., Path], tmp_path: Path) -> None:
    """Ten classes of 60, one after the other; chunks of about 10 samples."""
    content = []
    for n in range(600):
        content += [(f"{n:04d}.jpg", image_bytes(seed=n)), (f"{n:04d}.cls", str(n // 60).encode())]
    path = write_tar("x.tar", content)
    write = WriteSettings(chunk_bytes=25_000)
    prepare(
        WebdatasetSource(source="webdataset", train=str(path), test=str(path), write=write), tmp_path / "out"
    )
    view = open_view(DataView(path="out", split="train"), tmp_path)
    assert 5 < view.chunk < 15
    narrow = mixing(view, OrderSettings(lanes=1, window=2 * view.chunk), seed=0, batch=30)
    wide = mixing(view, OrderSettings(lanes=10, window=40), seed=0, batch=30)
    assert narrow["worst_case"] > 10
    assert 3 < narrow["measured"] < 1.3 * narrow["worst_case"]
    assert wide["measured"] < 1.5 < wide["worst_case"] < 3
    assert narrow["repeats"] > 0.3
    assert wide["repeats"] < 0.15
    assert narrow["shards"] == 1

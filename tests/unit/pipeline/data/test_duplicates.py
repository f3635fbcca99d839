from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipeline.config import DataView, FolderSource, WebdatasetSource
from pipeline.data.duplicates import find_duplicates, grey_picture, pair_sheet, perceptual_hash
from pipeline.data.exclusions import write_exclusions
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare
from pipeline.errors import UserError

from .conftest import PHOTOS


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("photos")
    prepare(FolderSource(source="folder", path=str(PHOTOS)), directory)
    return directory


def _view(directory: Path, split: str, **more: object) -> View:
    return open_view(DataView(path=".", split=split, **more), directory)


def _save(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", **options)
    return buffer.getvalue()


def _edited(photo: bytes) -> list[bytes]:
    """The photo itself; smaller, worse and brighter copies of it."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    half = image.resize((image.width // 2, image.height // 2))
    return [photo, _save(half), _save(image, quality=30), _save(ImageEnhance.Brightness(image).enhance(1.05))]


def test_copies_are_found_and_other_photos_are_not(
    photos: Path, tmp_path: Path, write_tar: Callable[..., Path]
) -> None:
    train, members = _view(photos, "train"), []
    originals = [3, 40, 77, 121]
    for original in originals:
        for number, data in enumerate(_edited(train.read(original))):
            members += [(f"{original}-{number}.jpg", data), (f"{original}-{number}.cls", b"0")]
    path = write_tar("edited.tar", members)
    prepare(WebdatasetSource(source="webdataset", train=str(path), test=str(path)), tmp_path / "edited")
    edited = open_view(DataView(path="edited", split="test"), tmp_path)
    pairs = find_duplicates(train, edited, threads=2)
    assert {(pair.first, edited.key(pair.second)) for pair in pairs} == {
        (original, f"{original}-{number}") for original in originals for number in range(4)
    }
    assert [pair.exact for pair in pairs] == [edited.key(pair.second).endswith("-0") for pair in pairs]
    assert pair_sheet(tmp_path / "pairs.png", pairs, train, edited) == len(pairs)
    assert Image.open(tmp_path / "pairs.png").size == (3 * 384, -(-len(pairs) // 3) * 110)
    assert pair_sheet(tmp_path / "many.png", pairs * 50, train, edited) == 60


def test_train_and_test_photos_share_nothing(photos: Path) -> None:
    assert find_duplicates(_view(photos, "train"), _view(photos, "test")) == []


def test_flat_images_of_other_colours_are_not_near(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    members = []
    for number, level in enumerate((40, 45, 200)):
        members += [
            (f"{number}.jpg", _save(Image.new("RGB", (50, 40), (level,) * 3))),
            (f"{number}.cls", b"0"),
        ]
    path = write_tar("flat.tar", members)
    prepare(WebdatasetSource(source="webdataset", train=str(path), test=str(path)), tmp_path / "flat")
    view = open_view(DataView(path="flat", split="train"), tmp_path)
    pairs = {(pair.first, pair.second) for pair in find_duplicates(view, view)}
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)}


def test_hashes_do_not_depend_on_brightness_alone() -> None:
    grey = grey_picture(next(PHOTOS.rglob("*.jpg")).read_bytes())
    assert grey is not None
    same, other = perceptual_hash(grey * 0.8 + 20), perceptual_hash(grey.T)
    assert (perceptual_hash(grey) ^ same).bit_count() <= 1
    assert (perceptual_hash(grey) ^ other).bit_count() > 10


def test_excluded_samples_are_not_read(photos: Path, tmp_path: Path) -> None:
    whole = _view(photos, "train")
    path = photos / "exclude.json"
    write_exclusions(path, whole.fingerprint, np.array([7, 3, 7]), "in the test set")
    rest = _view(photos, "train", exclude="exclude.json")
    assert rest.samples == 158
    assert not np.isin([3, 7], rest.ids).any()
    assert rest.fingerprint != whole.fingerprint
    with pytest.raises(UserError, match="exclusions for fingerprint"):
        _view(photos, "test", exclude="exclude.json")
    with pytest.raises(UserError, match="no list of exclusions at"):
        _view(photos, "train", exclude="nothing.json")
    with pytest.raises(UserError, match="159 samples asked for, 158 in"):
        _view(photos, "train", exclude="exclude.json", samples=159)

"""Small prepared datasets, made once for a test session."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import CacheSettings, DataView, GlyphsSource, WebdatasetSource, WriteSettings
from pipeline.data import assemble
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare

PHOTOS = Path(__file__).parents[3] / "data" / "photos"


@pytest.fixture(scope="session")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 train and 26 test drawings of 13 classes, in uneven shards of 30 and chunks of a few samples."""
    directory = tmp_path_factory.mktemp("glyphs")
    write = WriteSettings(shard_samples=30, chunk_bytes=20_000)
    prepare(
        GlyphsSource(source="glyphs", classes=13, train_per_class=10, test_per_class=2, write=write),
        directory,
    )
    return directory


WRITE = WriteSettings(shard_samples=40, chunk_bytes=20_000)


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose `local` is 120 train and 20 test drawings of 10 classes, for stores to serve: shards
    train/000000 … 000002 and test/000000, in chunks of a few samples."""
    root = tmp_path_factory.mktemp("drawings")
    glyphs = GlyphsSource(source="glyphs", classes=10, train_per_class=12, test_per_class=2, write=WRITE)
    prepare(glyphs, root / "local")
    return root


@pytest.fixture
def served(tmp_path: Path) -> Callable[[str], WebdatasetSource]:
    """The shards of `drawings` under a URL, as a dataset that adopts them, with a cache of the test's own."""

    def source(url: str) -> WebdatasetSource:
        return WebdatasetSource(
            source="webdataset",
            train=f"{url}/train/{{000000..000002}}.tar",
            test=f"{url}/test/000000.tar",
            cache=CacheSettings(directory=str(tmp_path / "cache")),
            write=WRITE,
        )

    return source


@pytest.fixture(autouse=True)
def threads_for_small_images_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drawings are so small that one thread would read them; here the others are to be tested."""
    monkeypatch.setattr(assemble, "_SMALL_BYTES", 0)


@pytest.fixture(scope="session")
def train_view(glyphs: Path) -> View:
    return open_view(DataView(path=".", split="train"), glyphs)


@pytest.fixture(scope="session")
def test_view(glyphs: Path) -> View:
    return open_view(DataView(path=".", split="test"), glyphs)


def image_bytes(
    kind: str = "JPEG", size: tuple[int, int] = (12, 9), seed: int = 0, mode: str = "RGB"
) -> bytes:
    """A small random picture, encoded."""
    shape = {"RGB": (size[1], size[0], 3), "L": (size[1], size[0])}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


Members = list[tuple[str, bytes]]


@pytest.fixture
def write_tar(tmp_path: Path) -> Callable[..., Path]:
    """A tar of (name, content) pairs, in order."""

    def write(name: str, members: Members, *, tar_format: int = tarfile.GNU_FORMAT) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w", format=tar_format) as tar:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return path

    return write


def samples(count: int, prefix: str = "") -> Members:
    """Members of `count` samples with labels 0, 1, 2, 0, …"""
    return [
        member
        for n in range(count)
        for member in (
            (f"{prefix}{n:04d}.jpg", image_bytes(seed=n)),
            (f"{prefix}{n:04d}.cls", str(n % 3).encode()),
        )
    ]

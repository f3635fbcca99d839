"""Training and evaluation from object stores: moto's S3 server and an emulator of Google's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from pipeline.config import AugmentSettings, DataView, OrderSettings, WebdatasetSource
from pipeline.data import remote
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.remote import RemoteFile
from pipeline.data.stamps import stamps
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, ReadError
from tests.helpers.object_store import gs_server, s3_server, use_gs, use_s3

SERVERS = {"s3": (s3_server, use_s3), "gs": (gs_server, use_gs)}
Put = Callable[[str, bytes], None]
Served = Callable[[str], WebdatasetSource]


@pytest.fixture(scope="module", params=["s3", "gs"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Scheme, and the server's own URL."""
    with SERVERS[request.param][0]() as url:
        yield request.param, url


@pytest.fixture
def bucket(
    running: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Put]]:
    """URL of a new bucket, and how to put something there."""
    scheme, url = running
    SERVERS[scheme][1](monkeypatch, url)
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)
    name = re.sub("[^a-z0-9]", "-", tmp_path.name.lower())
    files = fsspec.filesystem(scheme, use_listings_cache=False)
    files.mkdir(name)
    yield f"{scheme}://{name}", lambda path, data: files.pipe_file(f"{name}/{path}", data)
    stamps.cache_clear()


def _loader(root: Path, path: str) -> TrainLoader:
    return TrainLoader(
        open_view(DataView(path=path, split="train"), root), batch=24, image_size=24, threads=2, seed=5,
        augment=AugmentSettings(), order=OrderSettings(lanes=6, window=9), bad_samples=0, rank=0, world=1,
        steps=10,
    )  # fmt: skip


def test_training_and_evaluation(
    bucket: tuple[str, Put], drawings: Path, tmp_path: Path, served: Served
) -> None:
    url, put = bucket
    for path in (drawings / "local").glob("*/*.tar"):
        put(str(path.relative_to(drawings / "local")), path.read_bytes())
    manifest = prepare(served(url), tmp_path / "far")
    assert manifest.fingerprint == load_manifest(drawings / "local").fingerprint
    with _loader(tmp_path, "far") as loader:
        ids = np.concatenate([batch.ids.numpy() for batch in loader])
    assert np.bincount(ids).tolist() == [2] * 120
    view = open_view(DataView(path="far", split="test"), tmp_path)
    with EvalLoader(
        view, batch=8, image_size=16, augment=AugmentSettings(), threads=1, rank=0, world=1
    ) as evaluation:
        assert sum(float(batch.weights.sum()) for batch in evaluation) == 20


def test_indexes_beside_the_shards_are_used(
    bucket: tuple[str, Put], drawings: Path, tmp_path: Path, served: Served
) -> None:
    """No shard is read for them: while indexes are fetched, each has the right length and nothing in it."""
    url, put = bucket
    shards = {}
    for path in (drawings / "local").rglob("*.*"):
        name, data = str(path.relative_to(drawings / "local")), path.read_bytes()
        shards |= {name: data} if path.suffix == ".tar" else {}
        put(name, bytes(len(data)) if name in shards else data)
    manifest = prepare(served(url), tmp_path / "far")
    assert manifest.fingerprint == load_manifest(drawings / "local").fingerprint
    for name, data in shards.items():
        put(name, data)
    with _loader(tmp_path, "far") as far, _loader(drawings, "local") as near:
        for found, expected in zip(far, near, strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.labels, expected.labels)
    put("train/000001.tar", bytes(512))
    with pytest.raises(DataError, match=r"bytes in .*/train/000001\.tar"):
        prepare(served(url), tmp_path / "again")


def test_ranges_lengths_and_what_is_missing(bucket: tuple[str, Put]) -> None:
    url, put = bucket
    content = bytes(range(256)) * 40
    put("a/b.tar", content)
    file = RemoteFile(f"{url}/a/b.tar")
    assert file.size() == len(content)
    assert file.read(17, 4711) == content[17:4711]
    with pytest.raises(ReadError, match="did not arrive in 2 tries"):
        RemoteFile(f"{url}/a/b.tar", tries=2).read(0, len(content) + 1)
    for ask in (RemoteFile.size, lambda file: file.read(0, 4)):
        with pytest.raises(DataError, match=f"{url}/nothing cannot be read"):
            ask(RemoteFile(f"{url}/nothing"))


def test_listing_and_asking_one_by_one_say_the_same(bucket: tuple[str, Put]) -> None:
    url, put = bucket
    for number in range(60):
        put(f"a/{number:03d}.tar", bytes(number))
    urls = tuple(f"{url}/a/{number:03d}.tar" for number in range(60))
    listed = stamps((*urls, f"{url}/a/099.tar", f"{url}/none.tar"))
    assert [stamp[:2] for stamp in listed] == [(url, number) for number, url in enumerate(urls)]
    assert all(stamp[2] for stamp in listed)
    assert listed == tuple(stamp for url in urls for stamp in stamps((url,)))
    put("a/001.tar", b"2")
    stamps.cache_clear()
    assert [old == new for old, new in zip(listed, stamps(urls), strict=True)].count(False) == 1

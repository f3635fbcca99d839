"""Reading over real connections: an HTTP server that misbehaves on request, and moto's S3 server."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import (
    AugmentSettings,
    CacheSettings,
    DataView,
    GlyphsSource,
    OrderSettings,
    WebdatasetSource,
    WriteSettings,
)
from pipeline.data import remote
from pipeline.data.loader import TrainLoader
from pipeline.data.manifest import load_manifest
from pipeline.data.remote import RemoteFile, is_remote
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, ReadError, UserError
from tests.helpers.web_server import Server, web_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "web").mkdir()
    with web_server(tmp_path / "web") as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(remote, "STALL_S", 1.0)


def test_which_names_are_urls() -> None:
    assert is_remote("s3://bucket/a.tar")
    assert not is_remote("/data/a.tar")
    for name in ("pipe://cat x", "ftp://host/a.tar", "file:///etc/passwd"):
        with pytest.raises(UserError, match=re.escape(repr(name))):
            is_remote(name)


def test_ranges(server: Server, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "web/x").write_bytes(content)
    file = RemoteFile(f"{server.url}/x")
    assert file.size() == 100_000
    assert file.read(17, 4711) == content[17:4711]
    assert b"".join(file.blocks(100_000)) == content


@pytest.mark.parametrize("fault", ["503", "short", "reset", "stall", "flip"])
def test_faults_are_overcome(server: Server, tmp_path: Path, fault: str) -> None:
    content = os.urandom(50_000)
    (tmp_path / "web/x").write_bytes(content)
    server.faults.extend([fault] * 2)
    file = RemoteFile(f"{server.url}/x")
    if fault == "flip":  # only a hash can tell
        read = file.read(100, 40_000, lambda data: data == content[100:40_000])
    else:
        read = file.read(100, 40_000)
    assert read == content[100:40_000]
    assert not server.faults  # a stalled connection is given up: the server would have it wait for ever


def test_a_store_that_stays_broken_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "web/x").write_bytes(bytes(1000))
    server.faults.extend(["503"] * 50)
    with pytest.raises(
        ReadError, match=rf"bytes 0 to 10 of {server.url}/x did not arrive in 3 tries"
    ) as caught:
        RemoteFile(f"{server.url}/x", tries=3).read(0, 10)
    assert caught.value.retry
    server.faults.clear()
    with pytest.raises(ReadError, match="do not have the hash in the index"):
        RemoteFile(f"{server.url}/x", tries=2).read(0, 10, lambda data: False)


def test_a_missing_file_is_not_tried_again(server: Server) -> None:
    with pytest.raises(DataError, match="nowhere cannot be read"):
        RemoteFile(f"{server.url}/nowhere").read(0, 10)
    assert server.requests == 1


def test_a_store_in_trouble_is_not_taken_for_one_without_the_file(server: Server, tmp_path: Path) -> None:
    """fsspec says FileNotFoundError of both, when it is asked for a length."""
    (tmp_path / "web/x").write_bytes(bytes(1000))
    server.refused = 503
    with pytest.raises(ReadError, match=r"its size of .*/x did not arrive in 2 tries"):
        RemoteFile(f"{server.url}/x", tries=2).size()
    server.refused = 403
    before = server.requests
    for ask in (RemoteFile.size, lambda file: file.read(0, 10)):
        with pytest.raises(DataError, match=r"/x cannot be read \(PermissionError: 403"):
            ask(RemoteFile(f"{server.url}/x"))
    assert server.requests == before + 3  # a length is asked for in two ways, and nothing again
    server.refused = 0
    assert RemoteFile(f"{server.url}/x").size() == 1000


WRITE = WriteSettings(shard_samples=40, chunk_bytes=20_000)


def _remote_dataset(tmp_path: Path, web: Path, url: str) -> None:
    """The same drawings prepared locally in `local`, and adopted from `url` in `far`."""
    glyphs = GlyphsSource(source="glyphs", classes=10, train_per_class=12, test_per_class=2, write=WRITE)
    prepare(glyphs, tmp_path / "local")
    for split in ("train", "test"):
        for path in (tmp_path / "local" / split).glob("*.tar"):
            (web / f"{split}-{path.name}").write_bytes(path.read_bytes())
    settings = WebdatasetSource(
        source="webdataset",
        train=f"{url}/train-{{000000..000002}}.tar",
        test=f"{url}/test-000000.tar",
        cache=CacheSettings(directory=str(tmp_path / "cache")),
        write=WRITE,
    )
    prepare(settings, tmp_path / "far")


def _loader(root: Path, path: str, **more: int) -> TrainLoader:
    view = open_view(DataView(path=path, split="train"), root)
    given = {"rank": 0, "world": 1, "threads": 2, "steps": 10} | more
    return TrainLoader(
        view, batch=24, image_size=24, augment=AugmentSettings(), order=OrderSettings(lanes=6, window=9),
        seed=5, bad_samples=0.001, **given,
    )  # fmt: skip


def test_training_from_http_gives_the_batches_of_local_files(server: Server, tmp_path: Path) -> None:
    _remote_dataset(tmp_path, tmp_path / "web", server.url)
    server.bytes_sent.clear()
    server.faults.extend(["503", "", "short", "", "reset", "flip", "", "503"])
    # Chunks of an adopted dataset may be of another size, which makes another order: compare by ids.
    with _loader(tmp_path, "local") as loader:
        local = {
            int(i): (label, loader.view.key(int(i)))
            for b in loader
            for i, label in zip(b.ids, b.labels, strict=True)
        }
    with _loader(tmp_path, "far") as loader:
        far = {
            int(i): (label, loader.view.key(int(i)))
            for b in loader
            for i, label in zip(b.ids, b.labels, strict=True)
        }
    assert local == far
    assert len(far) == 120
    size = sum(path.stat().st_size for path in (tmp_path / "web").glob("train-*"))
    chunk = max(path.stat().st_size for path in (tmp_path / "cache").glob("??/*.chunk"))
    assert sum(server.bytes_sent.values()) <= size + 5 * chunk  # each chunk once, and what the faults cost


def test_ranks_of_a_node_download_each_chunk_once(server: Server, tmp_path: Path) -> None:
    _remote_dataset(tmp_path, tmp_path / "web", server.url)
    server.bytes_sent.clear()
    together = []
    for rank in range(3):
        with _loader(tmp_path, "far", rank=rank, world=3) as loader:
            together.append(list(loader))
    sent = sum(server.bytes_sent.values())
    assert sent == _chunk_bytes(tmp_path, range(120))
    with _loader(tmp_path, "far") as loader:
        for step, batch in enumerate(loader):
            assert torch.equal(batch.images, torch.cat([batches[step].images for batches in together]))
    assert sum(server.bytes_sent.values()) == sent


@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_a_node_reads_the_chunks_of_its_share_and_each_once(
    server: Server, tmp_path: Path, nodes: int
) -> None:
    """Bytes that left the server in one epoch, node by node, each of one rank with its own cache: exactly the
    chunks of the lanes that it has. So nodes add no more than the chunks that lie across two lanes."""
    _remote_dataset(tmp_path, tmp_path / "web", server.url)
    manifest = json.loads((tmp_path / "far/manifest.json").read_text())
    epoch, total = _chunk_bytes(tmp_path, range(120)), 0
    for rank in range(nodes):
        manifest["cache"]["directory"] = str(tmp_path / f"node{rank}")
        (tmp_path / "far/manifest.json").write_text(json.dumps(manifest))
        server.bytes_sent.clear()
        with _loader(tmp_path, "far", rank=rank, world=nodes, steps=5) as loader:
            ids = [int(i) for batch in loader for i in batch.ids]
        assert len(ids) == 120 // nodes
        assert sum(server.bytes_sent.values()) == _chunk_bytes(tmp_path, ids)
        total += sum(server.bytes_sent.values())
    largest = max(_chunk_bytes(tmp_path, [sample]) for sample in range(120))
    assert epoch <= total <= epoch + (nodes - 1) * largest


def _chunk_bytes(root: Path, ids: Iterable[int]) -> int:
    """Bytes of all chunks that hold one of these samples."""
    view = open_view(DataView(path="far", split="train"), root)
    shards, rows = view.locate(np.array(list(ids)))
    chunks = {(shard, row // view.chunk) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)}
    found = [view.store.rows.chunk(*chunk) for chunk in chunks]
    return sum(chunk.end - chunk.start for chunk in found)


def test_a_chunk_that_was_changed_ends_by_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _remote_dataset(tmp_path, tmp_path / "web", server.url)
    path = tmp_path / "web/train-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 255
    path.write_bytes(data)
    monkeypatch.setattr(remote, "TRIES", 2)
    with (
        _loader(tmp_path, "far") as loader,
        pytest.raises(ReadError, match=r"train-000001\.tar.*hash in the index"),
    ):
        list(loader)


def _far(server: Server, tmp_path: Path) -> WebdatasetSource:
    """Drawings in shards on the server, without manifest and indexes."""
    glyphs = GlyphsSource(source="glyphs", classes=10, train_per_class=12, test_per_class=2, write=WRITE)
    prepare(glyphs, tmp_path / "local")
    for split in ("train", "test"):
        (tmp_path / "web" / split).mkdir()
        for path in (tmp_path / "local" / split).glob("*.tar"):
            shutil.copy(path, tmp_path / "web" / split)
    return WebdatasetSource(
        source="webdataset",
        train=f"{server.url}/train/{{000000..000002}}.tar",
        test=f"{server.url}/test/000000.tar",
        cache=CacheSettings(directory=str(tmp_path / "cache")),
        write=WRITE,
    )


def test_shards_are_indexed_in_one_pass_through_faults(server: Server, tmp_path: Path) -> None:
    settings = _far(server, tmp_path)
    with ThreadPoolExecutor(3) as pool:
        manifest = prepare(settings, tmp_path / "far", run=pool.map)
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "web/train").iterdir()}
        assert {name: server.bytes_sent[name] for name in ("000001.tar", "000002.tar")} == {
            name: sizes[name] for name in ("000001.tar", "000002.tar")
        }
        # Train and test have a shard of this name.
        test_size = (tmp_path / "web/test/000000.tar").stat().st_size
        assert server.bytes_sent["000000.tar"] == sizes["000000.tar"] + test_size
        server.faults.extend(["503", "", "stall", "short", "reset", "503"])
        assert prepare(settings, tmp_path / "again", run=pool.map) == manifest
    assert manifest.fingerprint == load_manifest(tmp_path / "local").fingerprint


@pytest.mark.parametrize("whole", [True, False])
def test_indexes_beside_the_shards_are_used(server: Server, tmp_path: Path, whole: bool) -> None:
    """As `prepare` leaves a dataset, copied to the server; or as `vitline data index` does."""
    settings = _far(server, tmp_path)
    source = tmp_path / "local"
    if not whole:
        source = tmp_path / "indexed"
        prepare(settings, source)
    for path in [source / "manifest.json", *source.glob("*/*.npz")]:
        shutil.copy(path, tmp_path / "web" / path.relative_to(source))
    server.bytes_sent.clear()
    manifest = prepare(settings, tmp_path / "far")
    assert not [name for name in server.bytes_sent if name.endswith(".tar")]
    local = load_manifest(tmp_path / "local")
    assert manifest.fingerprint == local.fingerprint
    assert manifest.classes == (local.classes if whole else tuple(map(str, range(10))))
    with _loader(tmp_path, "far") as far, _loader(tmp_path, source.name) as near:
        for found, expected in zip(far, near, strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.labels, expected.labels)


def test_a_shard_that_changed_since_it_was_indexed_is_named(server: Server, tmp_path: Path) -> None:
    settings = _far(server, tmp_path)
    for path in [tmp_path / "local/manifest.json", *(tmp_path / "local").glob("*/*.npz")]:
        shutil.copy(path, tmp_path / "web" / path.relative_to(tmp_path / "local"))
    with (tmp_path / "web/train/000001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"bytes in .*/train/000001\.tar"):
        prepare(settings, tmp_path / "far")
    more = settings.model_copy(update={"train": f"{server.url}/train/{{000000,000002,new}}.tar"})
    shutil.copy(tmp_path / "local/train/000002.tar", tmp_path / "web/train/new.tar")
    # Not all are named by the manifest: they are indexed as if there were none.
    assert prepare(more, tmp_path / "far").classes == tuple(map(str, range(10)))

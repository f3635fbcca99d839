"""Reading over real connections: an HTTP server that misbehaves on request, and moto's S3 server."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import AugmentSettings, DataView, OrderSettings, WebdatasetSource
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


def test_a_server_without_ranges_is_found_out_at_once(tmp_path: Path) -> None:
    """Python's own: it sends the whole file, whatever is asked for."""
    (tmp_path / "x.tar").write_bytes(bytes(5000))
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = RemoteFile(f"http://127.0.0.1:{server.server_port}/x.tar")
        assert file.read(0, 5000) == bytes(5000)
        for read in (lambda: file.read(0, 10), lambda: list(file.blocks(file.size()))):
            with pytest.raises(DataError, match=r"5000 bytes of .*/x\.tar, of which bytes 0 to") as caught:
                read()
            assert not caught.value.retry
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


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


Served = Callable[[str], WebdatasetSource]


@pytest.fixture
def far(server: Server, tmp_path: Path, drawings: Path, served: Served) -> WebdatasetSource:
    """Drawings in shards on the server, without manifest and indexes."""
    shutil.copytree(drawings / "local", tmp_path / "web", dirs_exist_ok=True, ignore=_not_tars)
    return served(server.url)


def _not_tars(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.endswith((".npz", ".json"))]


@pytest.fixture
def adopted(far: WebdatasetSource, tmp_path: Path) -> None:
    """The same, adopted in `far`."""
    prepare(far, tmp_path / "far")


def _loader(root: Path, path: str, **more: int) -> TrainLoader:
    view = open_view(DataView(path=path, split="train"), root)
    given = {"rank": 0, "world": 1, "threads": 2, "steps": 10} | more
    return TrainLoader(
        view, batch=24, image_size=24, augment=AugmentSettings(), order=OrderSettings(lanes=6, window=9),
        seed=5, bad_samples=0.001, **given,
    )  # fmt: skip


@pytest.mark.usefixtures("adopted")
def test_training_from_http_gives_the_batches_of_local_files(
    server: Server, tmp_path: Path, drawings: Path
) -> None:
    server.bytes_sent.clear()
    server.faults.extend(["503", "", "short", "", "reset", "flip", "", "503"])
    # Chunks of an adopted dataset may be of another size, which makes another order: compare by ids.
    with _loader(drawings, "local") as loader:
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
    size = sum(path.stat().st_size for path in (tmp_path / "web/train").iterdir())
    chunk = max(path.stat().st_size for path in (tmp_path / "cache").glob("??/*.chunk"))
    assert sum(server.bytes_sent.values()) <= size + 5 * chunk  # each chunk once, and what the faults cost


@pytest.mark.usefixtures("adopted")
def test_ranks_of_a_node_download_each_chunk_once(server: Server, tmp_path: Path) -> None:
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


@pytest.mark.usefixtures("adopted")
@pytest.mark.parametrize("nodes", [1, 2, 3, 6])
def test_a_node_reads_the_chunks_of_its_share_and_each_once(
    server: Server, tmp_path: Path, nodes: int
) -> None:
    """Bytes that left the server in one epoch, node by node, each of one rank with its own cache: exactly the
    chunks of the lanes that it has. So nodes add no more than the chunks that lie across two lanes."""
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


@pytest.mark.usefixtures("adopted")
def test_a_chunk_that_was_changed_ends_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "web/train/000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 255
    path.write_bytes(data)
    monkeypatch.setattr(remote, "TRIES", 2)
    with (
        _loader(tmp_path, "far") as loader,
        pytest.raises(ReadError, match=r"train/000001\.tar.*hash in the index"),
    ):
        list(loader)


def test_shards_are_indexed_in_one_pass_through_faults(
    server: Server, tmp_path: Path, drawings: Path, far: WebdatasetSource
) -> None:
    with ThreadPoolExecutor(3) as pool:
        manifest = prepare(far, tmp_path / "far", run=pool.map)
        sizes = {path.name: path.stat().st_size for path in (tmp_path / "web/train").iterdir()}
        assert {name: server.bytes_sent[name] for name in ("000001.tar", "000002.tar")} == {
            name: sizes[name] for name in ("000001.tar", "000002.tar")
        }
        # Train and test have a shard of this name.
        test_size = (tmp_path / "web/test/000000.tar").stat().st_size
        assert server.bytes_sent["000000.tar"] == sizes["000000.tar"] + test_size
        server.faults.extend(["503", "", "stall", "short", "reset", "503"])
        assert prepare(far, tmp_path / "again", run=pool.map) == manifest
    assert manifest.fingerprint == load_manifest(drawings / "local").fingerprint


@pytest.mark.parametrize("whole", [True, False])
def test_indexes_beside_the_shards_are_used(
    server: Server, tmp_path: Path, drawings: Path, far: WebdatasetSource, whole: bool
) -> None:
    """As `prepare` leaves a dataset, copied to the server; or as `vitline data index` does."""
    root, name = (drawings, "local") if whole else (tmp_path, "indexed")
    if not whole:
        prepare(far, root / name)
    _put_indexes(root / name, tmp_path / "web")
    server.bytes_sent.clear()
    manifest = prepare(far, tmp_path / "far")
    assert not [name for name in server.bytes_sent if name.endswith(".tar")]
    local = load_manifest(drawings / "local")
    assert manifest.fingerprint == local.fingerprint
    assert manifest.classes == (local.classes if whole else tuple(map(str, range(10))))
    with _loader(tmp_path, "far") as distant, _loader(root, name) as near:
        for found, expected in zip(distant, near, strict=True):
            assert torch.equal(found.images, expected.images)
            assert torch.equal(found.labels, expected.labels)


def _put_indexes(source: Path, web: Path) -> None:
    for path in [source / "manifest.json", *source.glob("*/*.npz")]:
        shutil.copy(path, web / path.relative_to(source))


def test_what_was_left_out_is_known_with_the_indexes_too(
    tmp_path: Path, drawings: Path, far: WebdatasetSource
) -> None:
    """Somebody adopted a shard that is cut off, and put the indexes beside it."""
    path = tmp_path / "web/train/000001.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"train/000001\.tar is cut off"):
        prepare(far, tmp_path / "far")
    allowed = far.model_copy(update={"allow_damaged": True})
    (left_out,) = prepare(allowed, tmp_path / "indexed").splits["train"].bad
    assert left_out.key == far.train.replace("{000000..000002}", "000001")
    _put_indexes(tmp_path / "indexed", tmp_path / "web")
    train = prepare(far, tmp_path / "far").splits["train"]
    assert train.bad == (left_out,)
    assert 100 < train.samples < 120
    with _loader(tmp_path, "far", steps=2 * train.samples // 24) as loader:
        read = {int(sample) for batch in loader for sample in batch.ids}
    assert read == set(range(train.samples))


def test_a_shard_that_changed_since_it_was_indexed_is_named(
    server: Server, tmp_path: Path, drawings: Path, far: WebdatasetSource
) -> None:
    _put_indexes(drawings / "local", tmp_path / "web")
    with (tmp_path / "web/train/000001.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(DataError, match=r"bytes in .*/train/000001\.tar"):
        prepare(far, tmp_path / "far")
    more = far.model_copy(update={"train": f"{server.url}/train/{{000000,000002,new}}.tar"})
    shutil.copy(drawings / "local/train/000002.tar", tmp_path / "web/train/new.tar")
    # Not all are named by the manifest: they are indexed as if there were none.
    assert prepare(more, tmp_path / "far").classes == tuple(map(str, range(10)))

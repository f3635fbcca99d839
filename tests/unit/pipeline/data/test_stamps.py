"""What planning asks of stores: that a shard was replaced is seen, and none of its bytes are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.config import RunConfig, WebdatasetSource
from pipeline.config_io import load_config
from pipeline.data import remote
from pipeline.data.stamps import stamps
from pipeline.errors import ReadError
from pipeline.stages import prepare
from tests.helpers.object_store import s3_server, use_s3
from tests.helpers.web_server import web_server

ROOT = Path(__file__).resolve().parents[4]
Put = Callable[[str, bytes], None]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def store(
    scheme: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Put]]:
    """A place for shards, and how to put one there."""
    if scheme == "http":
        (tmp_path / "web").mkdir()
        with web_server(tmp_path / "web") as server:
            yield server.url, lambda name, data: (tmp_path / "web" / name).write_bytes(data) and None
            assert not server.bytes_sent, "planning has read bytes of a shard"
    else:
        use_s3(monkeypatch, request.getfixturevalue("s3"))
        bucket = fsspec.filesystem("s3", use_listings_cache=False)
        bucket.mkdir(tmp_path.name.replace("_", "-"))
        place = tmp_path.name.replace("_", "-")
        yield f"s3://{place}", lambda name, data: bucket.pipe_file(f"{place}/{name}", data)


def _identity(**settings: Any) -> Any:
    """What the prepare job of a run is identified by, asked by another process than the one before."""
    stamps.cache_clear()
    config: RunConfig = load_config(ROOT / "configs/demo.yaml", ())
    source = WebdatasetSource(source="webdataset", **settings)
    changed = config.model_copy(update={"datasets": {**config.datasets, "glyphs": source}})
    return next(job.identity for job in prepare.jobs(changed) if job.name == "prepare/glyphs")


# One question each; and one listing on stores that list.
@pytest.mark.parametrize("scheme, shards", [("http", 3), ("s3", 3), ("s3", 70)])
def test_a_shard_that_was_replaced_makes_the_dataset_due(store: tuple[str, Put], shards: int) -> None:
    url, put = store
    for number in range(shards):
        put(f"train-{number:03d}.tar", bytes(1024))
    put("test.tar", bytes(1024))
    put("train-other.tar", bytes(1024))
    names = {"train": f"{url}/train-{{000..{shards - 1:03d}}}.tar", "test": f"{url}/test.tar"}
    before = _identity(**names)
    put("train-001.tar", bytes(1024))
    put("train-other.tar", b"a neighbour")
    assert _identity(**names) == before, "the same bytes, written again"
    put("train-001.tar", bytes(1023) + b"1")
    changed = _identity(**names)
    assert changed != before, "a shard of the same size with another content"
    put("test.tar", bytes(2048))
    assert _identity(**names) not in (before, changed)


def test_a_missing_shard_is_left_to_the_job_and_a_dead_store_is_not(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    with web_server(tmp_path / "web") as server:
        url = server.url
        names = {"train": f"{url}/a.tar", "test": f"{url}/b.tar"}
        nothing = _identity(**names)
        (tmp_path / "web/a.tar").write_bytes(b"1")
        assert _identity(**names) != nothing
    with pytest.raises(ReadError, match=rf"no answer about {url}/[ab]\.tar") as caught:
        _identity(**names)
    assert "frozen: true" in caught.value.do
    assert _identity(**names, frozen=True)["files"] is None


def test_frozen_shards_of_the_disk_are_not_looked_at_either(tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    names = {"train": str(shard), "test": str(shard)}
    shard.write_bytes(b"1")
    before, frozen = _identity(**names), _identity(**names, frozen=True)
    shard.write_bytes(b"12")
    assert _identity(**names) != before
    assert _identity(**names, frozen=True) == frozen


def test_a_process_asks_once(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/a.tar").write_bytes(b"1")
    with web_server(tmp_path / "web") as server:
        first = stamps((f"{server.url}/a.tar",))
        asked = server.requests
        (tmp_path / "web/a.tar").write_bytes(b"2")
        assert stamps((f"{server.url}/a.tar",)) == first
        assert server.requests == asked

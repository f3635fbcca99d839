"""Which shards lie in a directory, on a web server's page, and under a prefix of moto's S3 server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import remote
from pipeline.data.listing import list_shards
from pipeline.errors import EnvironmentUnfit, UserError
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.shards import write_tar

WRITTEN = 1_700_000_000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_FIRST_WAIT_S", 0.01)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two shards, something else, and a shard that lies deeper."""
    place = tmp_path / "incoming"
    for name in ("b.tar", "a.tar", "deeper/c.tar"):
        write_tar(place / name, {"0.jpg": b"pixels"}, WRITTEN)
    (place / "manifest.json").write_text("{}")
    return place


class Quiet(SimpleHTTPRequestHandler):
    dated = True

    def log_message(self, *words: Any) -> None:
        """Tests print nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        if self.dated or keyword != "Last-Modified":
            super().send_header(keyword, value)


class Undated(Quiet):
    dated = False


@contextmanager
def listing_server(handler: type[Quiet], directory: Path) -> Iterator[str]:
    """Python's own web server, whose page of a directory is a list of links."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def facts(place: str) -> list[tuple[str, str, int, int | None]]:
    return [(entry.name, entry.place, entry.bytes, entry.written_ns) for entry in list_shards(place)]


def test_a_directory(directory: Path) -> None:
    assert facts(str(directory)) == [
        (name, f"{directory}/{name}", 10240, WRITTEN * 10**9) for name in ("a.tar", "b.tar")
    ]
    with pytest.raises(UserError, match="no directory"):
        list_shards(str(directory / "nowhere"))


def test_a_page_of_links(directory: Path) -> None:
    with listing_server(Quiet, directory.parent) as url:
        place = f"{url}/incoming"
        expected = [(name, f"{place}/{name}", 10240, WRITTEN * 10**9) for name in ("a.tar", "b.tar")]
        assert facts(place) == facts(f"{place}/") == expected
        with pytest.raises(UserError, match=r"nowhere that can be read \(FileNotFoundError\)"):
            list_shards(f"{url}/nowhere")
    with pytest.raises(EnvironmentUnfit, match="no answer about"):
        list_shards(place)


def test_a_server_that_tells_no_times(directory: Path) -> None:
    with listing_server(Undated, directory) as url:
        assert [entry.written_ns for entry in list_shards(url)] == [None, None]


def test_a_prefix_of_a_store(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as url:
        store = empty_bucket(monkeypatch, url, "listed")
        assert list_shards("s3://listed/incoming") == []
        store.put(f"{directory}/", "s3://listed/incoming/", recursive=True)
        found = list_shards("s3://listed/incoming/")
        assert [(entry.name, entry.place, entry.bytes) for entry in found] == [
            (name, f"s3://listed/incoming/{name}", 10240) for name in ("a.tar", "b.tar")
        ]
        assert all(entry.written_ns is not None and entry.written_ns > WRITTEN * 10**9 for entry in found)
        store.put(str(directory / "a.tar"), "s3://listed/incoming/z.tar")
        assert [entry.name for entry in list_shards("s3://listed/incoming")] == ["a.tar", "b.tar", "z.tar"]
        with pytest.raises(UserError, match="no directory s3://no-such-bucket"):
            list_shards("s3://no-such-bucket/incoming")

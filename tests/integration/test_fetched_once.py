"""Shards at a URL come over the network once a node, however many jobs read them: counted at the server."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = Path(__file__).parent / "small.yaml"


class Ranges(SimpleHTTPRequestHandler):
    """Serves files and ranges of them; `seen` counts what bodies were asked for: (file, range)."""

    protocol_version = "HTTP/1.1"
    seen: ClassVar[Counter[tuple[str, str]]] = Counter()
    lock = threading.Lock()

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        wanted = self.headers.get("Range", "")
        with self.lock:
            self.seen[self.path, wanted] += 1
        first, last = 0, len(data) - 1
        if wanted:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[first : last + 1])


def write_shard(path: Path, images: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for number in range(images):
            label = number % 2
            picture = io.BytesIO()
            pixels = rng.integers(128 * label, 128 + 127 * label, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(picture, "PNG")
            for name, data in (("png", picture.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{path.stem}-{number:04d}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[str]:
    """URL of two shards to train on and one to test on."""
    directory = tmp_path / "served"
    directory.mkdir()
    for seed, (name, images) in enumerate((("train-0", 60), ("train-1", 60), ("test-0", 20))):
        write_shard(directory / f"{name}.tar", images, seed)
    Ranges.seen.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_many_jobs_of_one_dataset_fetch_it_once(
    vitline: Callable[..., Any], tmp_path: Path, shards: str
) -> None:
    settings = [
        str(SMALL),
        f"root={tmp_path / 'runs'}",
        "pretrain.duration=2 steps",
        "pretrain.optimizer.warmup=0 steps",
        "pretrain.gang.workers=1",
        "tracking.enabled=false",
        "datasets.far.source=webdataset",
        f"datasets.far.train='{shards}/train-{{0..1}}.tar'",
        f"datasets.far.test={shards}/test-0.tar",
        f"datasets.far.cache.directory={tmp_path / 'cache'}",
        "transfer.datasets=[far]",
        "transfer.seeds=[0,1]",
    ]
    prepared = vitline("run", *settings, "--until", "prepare")
    assert prepared.wait() == 0, prepared.text
    # The pass that makes the index reads each shard once, too.
    before = Counter(Ranges.seen)
    assert {path for path, _ in before} == {"/train-0.tar", "/train-1.tar", "/test-0.tar"}
    command = vitline("run", *settings)
    assert command.wait() == 0, command.text
    fetched = Ranges.seen - before
    assert {path for path, _ in fetched} == {"/train-0.tar", "/train-1.tar", "/test-0.tar"}
    # Four choices, four trainings and four evaluations of two processes at a time.
    assert set(fetched.values()) == {1}, fetched

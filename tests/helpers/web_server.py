"""A web server for a test, which misbehaves on request."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path


class Server(http.server.ThreadingHTTPServer):
    """Serves files with ranges. `faults` are used up one a request of a body; `bytes_sent` counts by path.

    `refused`: the status with which everything is answered while it is set.
    """

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory))
        self.faults: deque[str] = deque()
        self.bytes_sent: Counter[str] = Counter()
        self.requests = 0
        self.refused = 0
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def __init__(self, directory: Path, *given: object) -> None:
        self._directory = directory
        super().__init__(*given)  # type: ignore[arg-type]

    def log_message(self, *given: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.server.requests += 1
        fault = self.server.faults.popleft() if body and self.server.faults else ""
        path = self._directory / self.path.lstrip("/")
        if self.server.refused:
            self.send_error(self.server.refused)
            return
        if fault == "503" or not path.is_file():
            self.send_error(503 if fault else 404)
            return
        whole = data = path.read_bytes()
        match = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match:
            start, end = int(match.group(1)), min(int(match.group(2)), len(data) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
            data = data[start : end + 1]
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.md5(whole).hexdigest()}"')
        self.send_header("Content-Length", str(len(data) - 7 if fault == "short" else len(data)))
        self.end_headers()
        if not body:
            return
        self.server.bytes_sent[path.name] += len(data)
        if fault == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault in ("stall", "reset"):
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.server.ended.wait()
            # Linger 0: closing sends a reset instead of an orderly end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.wfile.write(data[:-7] if fault == "short" else data)


@contextmanager
def web_server(directory: Path) -> Iterator[Server]:
    """Serves the files of `directory` on the loopback, while inside."""
    server = Server(directory)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()

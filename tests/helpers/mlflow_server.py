"""A real MLflow server on this machine, and a proxy before it that can fail and stall."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(directory: Path) -> Iterator[str]:
    """A server with SQLite and artifacts in `directory`; its address. Ended with all its processes."""
    port = free_port()
    environment = {
        **os.environ,
        # Its job runner would be eight more processes of 200 MB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{directory}/server.db"]
    command += ["--artifacts-destination", str(directory / "artifacts")]
    with (directory / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, cwd=directory, start_new_session=True
        )
        try:
            _wait_until_healthy(port, process, directory / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            # Our own new session, so this ends the server's workers and nobody else's.
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"no server after 120 s:\n{log.read_text()[-2000:]}")


class FlakyProxy:
    """Passes requests on to `target`, or misbehaves.

    Args:
        mode: "pass"; "503": answers that; "lose": passes a request on and drops the answer;
            "stall": keeps the request for `stall_s` before it passes it on.

    Attributes `only` (end of the path) and `faults` (how many more) limit the mode to some requests.
    """

    def __init__(self, target: str) -> None:
        self.mode = "pass"
        self.stall_s = 2.0
        self.only = ""
        self.faults = 1_000_000
        self.requests = 0
        self._closed = threading.Event()
        proxy, parts = self, urlsplit(target)

        class Handler(http.server.BaseHTTPRequestHandler):
            def _handle(self) -> None:
                proxy.requests += 1
                mode = proxy.mode if self.path.endswith(proxy.only) and proxy.faults > 0 else "pass"
                proxy.faults -= mode != "pass"
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "503":
                    self.send_error(503)
                    return
                if mode == "stall":
                    proxy._closed.wait(proxy.stall_s)
                connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if mode == "lose":
                    self.close_connection = True
                    return
                with contextlib.suppress(OSError):  # the client has given up
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _handle

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

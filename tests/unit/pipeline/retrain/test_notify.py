"""Webhooks at a loopback server, and commands; a fault is logged without the address."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pipeline.config import NotifySettings
from pipeline.retrain.notify import notify, ping

BODY = {"summary": "m: promoted (it is better)", "version": "3"}


class Receiver(BaseHTTPRequestHandler):
    got: ClassVar[list[tuple[dict[str, str], bytes]]] = []
    pings: ClassVar[list[str]] = []
    status = 200

    def do_GET(self) -> None:
        Receiver.pings.append(self.path)
        self.send_response(Receiver.status)
        self.end_headers()

    def do_POST(self) -> None:
        Receiver.got.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(Receiver.status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Receiver.got, Receiver.pings, Receiver.status = [], [], 200
    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/hook?token=canary"
    monkeypatch.setenv("HOOK", address)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_webhook_gets_the_signed_body(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "secret")
    notify([NotifySettings(url_env="HOOK", key_env="KEY", on=("promoted",))], "promoted", BODY)
    ((headers, data),) = Receiver.got
    assert json.loads(data) == {"schema": 1, "event": "promoted", **BODY}
    signed = headers["X-Vitline-Timestamp"].encode() + b"." + data
    assert headers["X-Vitline-Signature"] == hmac.new(b"secret", signed, hashlib.sha256).hexdigest()


def test_only_what_was_asked_for_is_sent(url: str) -> None:
    notify([NotifySettings(url_env="HOOK", on=("failed",))], "promoted", BODY)
    assert Receiver.got == []
    notify([NotifySettings(url_env="HOOK", format="slack", on=("promoted",))], "promoted", BODY)
    assert json.loads(Receiver.got[0][1]) == {"text": BODY["summary"]}


@pytest.mark.parametrize(("status", "said"), [(302, "302"), (403, "403")])
def test_a_failure_is_logged_without_the_address(
    url: str, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    Receiver.status = status
    with caplog.at_level(logging.WARNING):
        notify([NotifySettings(url_env="HOOK")], "promoted", BODY)
    assert len(Receiver.got) == 1
    assert said in caplog.text
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    "address", ["http://192.0.2.1/x", "http://169.254.169.254/x", "file:///etc/passwd", ""]
)
def test_addresses_that_are_not_used(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOOK", address)
    with caplog.at_level(logging.WARNING):
        notify([NotifySettings(url_env="HOOK")], "promoted", BODY)
    assert "notifying HOOK of promoted failed" in caplog.text


def test_a_command_gets_the_body_on_stdin(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = f"import sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read())"
    notify([NotifySettings(command=(sys.executable, "-c", copy))], "promoted", BODY)
    assert json.loads((tmp_path / "got").read_text())["version"] == "3"
    with caplog.at_level(logging.WARNING):
        notify([NotifySettings(command=(sys.executable, "-c", "raise SystemExit(3)"))], "promoted", BODY)
    assert "failed" in caplog.text


def test_a_ping_says_that_the_tick_ended(url: str, caplog: pytest.LogCaptureFixture) -> None:
    ping("HOOK")
    assert Receiver.pings == ["/hook?token=canary"]
    Receiver.status = 404
    with caplog.at_level(logging.WARNING):
        ping("HOOK")
        ping("NO_SUCH_VARIABLE")
    assert "the ping to HOOK failed: HTTP status 404" in caplog.text
    assert "the ping to NO_SUCH_VARIABLE failed: the variable holds no URL" in caplog.text
    assert "canary" not in caplog.text

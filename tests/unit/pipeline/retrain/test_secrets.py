"""Secrets of a scheduler's environment: what rounds write, register and print holds none of them."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from pipeline.retrain.promotion import roll_back
from tests.helpers.canary import CANARY, SECRETS, files_with
from tests.helpers.month import Month, drop


@pytest.fixture
def closed() -> str:
    """A URL with a token, on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/{CANARY}?token={CANARY}"


def test_nothing_that_a_round_writes_holds_a_secret(
    closed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in {**SECRETS, "HOOK": closed, "KEY": CANARY, "PING": closed}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.retrain.notify._TRIES", 1)
    hook = {"url_env": "HOOK", "key_env": "KEY", "on": ["started", "promoted"]}
    month = Month(tmp_path, notify=[hook], ping_env="PING")
    with caplog.at_level(logging.DEBUG):
        for day in (1, 4):
            drop(month.watch, day)
            month.day = day + 1
            assert month.tick().decision == "promoted"
        assert roll_back(month.registry, None, "wrong labels") == ("2", "1")
    # It was tried, and failed, by name.
    assert "notifying HOOK of promoted failed" in caplog.text
    assert "the ping to PING failed" in caplog.text
    written = {path.name for path in tmp_path.rglob("*")}
    assert {"mlflow.db", "round.json", "gate.json", "ledger.jsonl", "weights.safetensors"} <= written
    printed = capfd.readouterr()
    assert CANARY not in caplog.text + printed.out + printed.err
    assert files_with(CANARY, tmp_path) == []

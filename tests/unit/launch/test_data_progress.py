from __future__ import annotations

import pytest

from launch import data_progress
from launch.data_progress import LineOfProgress

EVENT = {"event": "progress", "split": "train", "done": 40, "total": 160, "images_per_s": 80.0, "eta_s": 90.0}


def test_a_terminal_gets_one_line_that_is_drawn_anew(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with LineOfProgress("verify") as report:
        report(EVENT)
        report(EVENT | {"done": 80})
    drawn = capsys.readouterr().err.split("\r\x1b[K")
    assert drawn == [
        "",
        "verify  train 40/160 images  80 images/s  1:30 left",
        "verify  train 80/160 images  80 images/s  1:30 left",
        "",
    ]


def test_a_log_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LineOfProgress("index") as report:
        report(EVENT)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(data_progress, "_LOG_INTERVAL_S", 0.0)
    with LineOfProgress("index") as report:
        report(EVENT)
    assert capsys.readouterr().err == "index  train 40/160 images  80 images/s  1:30 left\n"

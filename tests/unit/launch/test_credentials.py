"""A URL with credentials, typed on any command line, is refused by the setting's name and shown nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.helpers.canary import CANARY, files_with

ROOT = Path(__file__).resolve().parents[3]
RETRAIN = str(ROOT / "configs/retrain/demo.yaml")
DEMO = str(ROOT / "configs/demo.yaml")
TRACKING = f"tracking.uri=https://me:{CANARY}@host"
WATCHED = f"retrain.data.watch=https://host/in?token={CANARY}"


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("tracking.uri", ["run", DEMO, TRACKING]),
        ("tracking.uri", ["plan", DEMO, TRACKING]),
        ("tracking.uri", ["doctor", DEMO, TRACKING]),
        ("tracking.uri", ["config", "show", DEMO, TRACKING]),
        ("tracking.uri", ["launch", "kubernetes", DEMO, TRACKING]),
        ("tracking.uri", ["retrain", RETRAIN, TRACKING]),
        ("retrain.data.watch", ["retrain", RETRAIN, "--dry-run", WATCHED]),
        ("retrain.data.watch", ["retrain", RETRAIN, "--pause", "why", WATCHED]),
        ("retrain.data.watch", ["promote", RETRAIN, WATCHED]),
        ("retrain.data.watch", ["rollback", RETRAIN, "--reason", "why", WATCHED]),
        ("retrain.data.watch", ["schedule", "render", "cron", RETRAIN, WATCHED, "--out", "units"]),
        (None, ["compare", "latest", "--tracking", f"https://me:{CANARY}@host"]),
        (None, ["retrain", RETRAIN, f"retrain.notify=[{{url_env: 'https://host/{CANARY}'}}]"]),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_it_is_refused(
    key: str | None,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert "error: " in said.err
    if key is not None:
        assert f"credentials in the URL of {key}" in said.err
    assert CANARY not in said.out + said.err
    assert files_with(CANARY, tmp_path) == []

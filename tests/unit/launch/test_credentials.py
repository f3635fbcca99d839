"""A URL with credentials, typed on any command line, is refused by the setting's name and shown nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.cli import main
from tests.helpers.canary import CANARY, SECRETS, files_with

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


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["launch", "local", DEMO, "--dry-run", "--out", "made"], "run.sh"),
        (["launch", "ray", DEMO, "--dry-run", "--out", "made"], "config.yaml"),
        (["launch", "slurm", DEMO, "--dry-run", "--out", "made", "--cluster", "site.yaml"], "job.sbatch"),
        (
            ["launch", "kubernetes", DEMO, "--dry-run", "--out", "made", "--cluster", "site.yaml"],
            "rayjob.yaml",
        ),
        (["schedule", "render", "cron", RETRAIN, "--out", "made"], "vitline-retrain-demo.cron"),
        (["schedule", "render", "systemd", RETRAIN, "--out", "made"], "vitline-retrain-demo.service"),
        (["schedule", "render", "airflow", RETRAIN, "--out", "made"], "vitline-retrain-demo.py"),
        (
            ["schedule", "render", "kubernetes", RETRAIN, "--out", "made", "--cluster", "site.yaml"],
            "cronjob.yaml",
        ),
    ],
    ids=lambda value: " ".join(value[:3:2]) if isinstance(value, list) else None,
)
def test_rendered_files_hold_nothing_of_the_environment(
    words: list[str],
    written: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    site = "kubernetes: {image: vitline, volume_claim: runs, secrets: [mlflow], token_secret: ray}\n"
    (tmp_path / "site.yaml").write_text(site)
    monkeypatch.setattr(sys, "argv", ["vitline", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert ended.value.code in (0, None), said
    assert (tmp_path / "made" / written).is_file()
    assert CANARY not in said.out + said.err
    assert files_with(CANARY, tmp_path) == []

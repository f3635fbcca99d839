"""Which stores may be used, and that a mirror costs its caller nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config import TrackingSettings
from pipeline.errors import UserError
from pipeline.rundir import RunDir
from pipeline.tracking import Mirror
from pipeline.tracking_uri import artifact_location


def mirror(tmp_path: Path, uri: str | None) -> Mirror:
    return Mirror(RunDir(tmp_path / "runs" / "one"), TrackingSettings(uri=uri), name="one")


def test_the_default_is_sqlite_beside_the_runs(tmp_path: Path) -> None:
    made = mirror(tmp_path, None)
    assert made.uri == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert artifact_location(made.uri) == f"file://{tmp_path}/runs/mlartifacts"
    assert made.url() is None
    assert list(tmp_path.iterdir()) == []  # nothing is opened before there is something to send


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns"])
def test_the_file_store_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="sqlite:///FILE"):
        mirror(tmp_path, uri)


@pytest.mark.parametrize(
    "uri", ["http://me:secret@host", "https://token@host", "postgresql://me:secret@host/db"]
)
def test_credentials_in_the_address_are_refused_and_not_shown(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking\.uri holds credentials") as caught:
        mirror(tmp_path, uri)
    assert "secret" not in str(caught.value)


def test_a_user_name_for_a_database_is_no_secret(tmp_path: Path) -> None:
    assert mirror(tmp_path, "postgresql://me@host/db").url() is None


def test_mlflow_is_told_to_keep_quiet() -> None:
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"

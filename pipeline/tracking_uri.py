"""Addresses of tracking stores: which may be used, and what a file of our own needs besides."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config.secrets import has_credentials
from pipeline.errors import UserError


def check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        raise UserError(
            f"tracking.uri is {uri!r}, a directory",
            "an address: sqlite:///FILE, http://HOST:PORT, postgresql://HOST/NAME",
            "leave tracking.uri out to get SQLite beside the runs; MLflow gave up its file store",
        )
    if has_credentials(uri):
        raise UserError(
            "tracking.uri holds credentials",
            "none: the resolved configuration, which is stored and shown, would hold them too",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )


def _sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifact_location(uri: str) -> str | None:
    """Beside an SQLite file; MLflow's default would be the working directory. None: the server's."""
    file = _sqlite_file(uri)
    return (file.parent / "mlartifacts").as_uri() if file else None


@contextlib.contextmanager
def alone(uri: str) -> Iterator[None]:
    """Let one process at a time open an SQLite store: several that make its tables at once fail."""
    file = _sqlite_file(uri)
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file.parent, os.O_RDONLY)
    try:
        # File systems without locks have no two drivers in our tests either; then nothing is locked.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""Tars of members made by hand."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(path: Path, members: Mapping[str, bytes], written: float | None = None) -> Path:
    """A plain tar; `written`: Unix seconds that it claims to have been written at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if written is not None:
        os.utime(path, (written, written))
    return path

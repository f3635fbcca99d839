"""The checkpoints of one job at a URL that fsspec knows: s3, gs, abfs, a mounted path, and others.

    URL/DIGEST/step-000001000-1a2b3c4d/
      rank-00000-of-00016.safetensors …    as they are in the job's directory (checkpoint.py)
      COMPLETE                             the same bytes, put last

A directory's name ends with the hash of its marker. So a copy is named by its content: two attempts that
saved the same step write to two directories, and none can damage what another has completed. A directory
without a readable marker does not exist for us.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.remote import GaveUp, keep_trying
from pipeline.data.writable import json_object, open_directory
from pipeline.errors import EnvironmentUnfit
from pipeline.train.checkpoint import MARKER, check_format, outlived

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_TRIES = 5


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A complete one. `record` is its marker's content, `marker` the bytes of it."""

    name: str
    marker: bytes
    record: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.record["step"])

    @property
    def local_name(self) -> str:
        return self.name.rpartition("-")[0]


def remote_name(local_name: str, marker: bytes) -> str:
    return f"{local_name}-{hashlib.sha256(marker).hexdigest()[:8]}"


class RemoteCheckpoints:
    """Reads and writes them; every call tries again for a while, and then raises EnvironmentUnfit."""

    def __init__(self, url: str, digest: str) -> None:
        """Raises ConfigError for a URL that nothing can write to, EnvironmentUnfit for a missing package."""
        self._files, root, self._flat = open_directory(url, "checkpoint.remote")
        self.url = url
        self._root = f"{root}/{digest}"

    def check(self) -> None:
        """Prove that it can be written to, before a training relies on it."""
        probe = f"{self._root}/probe"
        self._again("writing to it", lambda: self._put(probe, b"vitline"))
        self._again("removing from it", lambda: self._files.rm(probe))

    def complete(self) -> list[RemoteCheckpoint]:
        """Newest first."""
        found = []
        for name in self._names():
            path = f"{self._root}/{name}/{MARKER}"
            marker = self._again(f"reading {path}", partial(self._get, path))
            record = json_object(marker)
            if record is not None and marker is not None:
                check_format(record, f"{self.url}: {name}")
                found.append(RemoteCheckpoint(name, marker, record))
        return sorted(found, key=lambda checkpoint: (checkpoint.step, checkpoint.name), reverse=True)

    def upload(self, name: str, path: Path) -> None:
        """Put one file of a checkpoint there."""
        there = f"{self._root}/{name}/{path.name}"

        def put() -> None:
            self._make_room(f"{self._root}/{name}")
            self._files.put_file(str(path), there)

        self._again(f"copying {path.name}", put)

    def size(self, name: str, file: str) -> int | None:
        """Bytes of one file; None: it is not there."""

        def look() -> int | None:
            try:
                return int(self._files.info(f"{self._root}/{name}/{file}")["size"])
            except FileNotFoundError:
                return None

        return self._again(f"looking for {file}", look)

    def mark(self, name: str, marker: bytes) -> None:
        """Complete a checkpoint: all its files are there."""
        self._again("completing a checkpoint", lambda: self._put(f"{self._root}/{name}/{MARKER}", marker))

    def download(self, name: str, file: str, to: Path) -> None:
        """Fetch one file."""
        there = f"{self._root}/{name}/{file}"
        self._again(f"fetching {there}", lambda: self._files.get_file(there, str(to)))

    def retain(self, keep: int, keep_every: int | None, spare: Collection[int] = ()) -> None:
        """Remove what has outlived its use but for the steps in `spare`, marker first."""
        found = self.complete()
        for step in outlived({checkpoint.step for checkpoint in found}, keep, keep_every):
            for checkpoint in found:
                if checkpoint.step == step and step not in spare:
                    self.remove(checkpoint.name)

    def sweep(self) -> None:
        """Remove what no attempt completed; before an attempt's first copy."""
        complete = {checkpoint.name for checkpoint in self.complete()}
        for name in self._names():
            if name not in complete:
                self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a checkpoint, marker first."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(f"{self._root}/{name}/{MARKER}")
            with contextlib.suppress(FileNotFoundError):
                self._files.rm(f"{self._root}/{name}", recursive=True)

        self._again("removing a checkpoint", remove)

    def _names(self) -> list[str]:
        def listed() -> list[str]:
            try:
                return [str(path) for path in self._files.ls(self._root, detail=False)]
            except FileNotFoundError:
                return []

        names = [path.rstrip("/").rpartition("/")[2] for path in self._again("listing it", listed)]
        return [name for name in names if name.startswith("step-")]

    def _get(self, path: str) -> bytes | None:
        try:
            data: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        return data

    def _put(self, path: str, data: bytes) -> None:
        self._make_room(path.rpartition("/")[0])
        self._files.pipe_file(path, data)

    def _make_room(self, directory: str) -> None:
        if not self._flat:
            self._files.makedirs(directory, exist_ok=True)

    def _again(self, what: str, action: Callable[[], _T]) -> _T:
        def told(fault: str) -> None:
            log.info("%s of %s failed: %s", what, self.url, fault)

        try:
            return keep_trying(action, _TRIES, growth=4, told=told)
        except GaveUp as last:
            raise EnvironmentUnfit(
                f"{what} of checkpoint.remote {self.url} failed in {_TRIES} tries (last: {last})",
                "a store that answers and may be written to",
                "check the URL, the rights and the network, then run again",
            ) from None

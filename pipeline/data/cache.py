"""Chunks of remote shards on the node's own disk, shared by all its processes.

    DIRECTORY/
      ab/abcdef….chunk    named by the hash of its content; written beside, then renamed
      locks/ab            held, by the kernel's file locks, while a chunk of these letters is fetched

A chunk is fetched once a node, whoever asks first. The total stays under a limit: the longest unused go
first. A killed process leaves nothing that another would wait for, since the kernel frees its locks.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data.files import OpenFile
from pipeline.errors import EnvironmentUnfit, UserError

_STALE_S = 3600.0


class NodeCache:
    """`limit_bytes` is for all chunks in `directory` together."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self._directory = directory
        self._limit = limit_bytes
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        (directory / "locks").mkdir(exist_ok=True)

    def open(self, name: str, size: int, fetch: Callable[[], bytes]) -> OpenFile:
        """The chunk `name` (hexadecimal hash) of `size` bytes, fetched if it is not there.

        What `fetch` raises is passed on.

        Raises:
            UserError: the chunk is larger than the whole cache.
            EnvironmentUnfit: the disk is full.
        """
        if size > self._limit:
            raise UserError(
                f"a chunk of {size} bytes and a cache of {self._limit}",
                "a cache that holds some windows of chunks for each rank",
                "raise `cache.limit_gib` of the dataset",
            )
        path = self._directory / name[:2] / f"{name}.chunk"
        found = _open_whole(path, size)
        if found:
            return found
        with self._locked(name[:2]):
            found = _open_whole(path, size)
            if found:
                return found
            data = fetch()
            assert len(data) == size, f"{len(data)} bytes fetched for a chunk of {size}"
            return self._keep(path, data)

    def _keep(self, path: Path, data: bytes) -> OpenFile:
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        with self._locked("evict"):
            self._evict(self._limit - len(data))
        try:
            part.write_bytes(data)
        except OSError as error:
            part.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise EnvironmentUnfit(
                f"no room for {len(data)} bytes in the cache {self._directory}",
                f"a disk with room for {self._limit} bytes",
                "free the disk, or change `cache` of the dataset",
            ) from error
        file = OpenFile(part)
        part.rename(path)
        return file

    def _evict(self, room: int) -> None:
        """Delete the longest unused chunks until the rest is at most `room` bytes."""
        known = []
        for path in self._directory.glob("??/*.*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.suffix == ".chunk":
                    known.append((status.st_mtime, status.st_size, path))
                elif time.time() - status.st_mtime > _STALE_S:  # left by a killed process
                    path.unlink()
        total = sum(size for _, size, _ in known)
        for _, size, path in sorted(known):
            if total <= room:
                return
            path.unlink(missing_ok=True)
            total -= size

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        descriptor = os.open(self._directory / "locks" / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _open_whole(path: Path, size: int) -> OpenFile | None:
    try:
        file = OpenFile(path)
        if os.fstat(file.descriptor).st_size != size:
            return None
        os.utime(path)
    except FileNotFoundError:
        return None
    return file

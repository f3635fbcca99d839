"""Bytes of samples, by shard and row; knows where they lie so that nobody else has to.

Local shards are read with `pread`, which any number of threads can do on one file. Of remote shards whole
chunks are fetched into the node's cache and read there. Files in use are kept open; the least recently
used are closed.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cache import NodeCache
from pipeline.data.files import OpenFile
from pipeline.data.index import chunk_digest
from pipeline.data.manifest import Split
from pipeline.data.remote import RemoteFile, is_remote
from pipeline.data.rows import Rows
from pipeline.errors import DataError, VitlineError

_OPEN_FILES = 512
_FETCHERS = 4  # threads that fetch what is announced
_WHOLE = -1  # chunk number that stands for a local shard's whole file

I64 = NDArray[np.int64]


class Store:
    """The samples of one split. `cache` is needed for remote shards only."""

    def __init__(self, directory: Path, split: Split, cache: NodeCache | None = None) -> None:
        self.rows = Rows(directory, split)
        self._directory = directory
        self._shards = split.shards
        self._chunk = split.chunk
        self._cache = cache
        self._remote = [is_remote(shard.name) for shard in split.shards]
        self._lock = threading.Lock()
        self._files: OrderedDict[tuple[int, int], OpenFile] = OrderedDict()
        self._ahead: ThreadPoolExecutor | None = None

    def read(self, shard: int, row: int) -> bytes:
        """The image of one sample.

        Raises:
            DataError: the shard is missing, or shorter than its index says.
            ReadError: a remote chunk could not be read, or has other bytes than its index says.
        """
        chunk, place = divmod(row, self._chunk)
        rows = self.rows.chunk(shard, chunk)
        offset, size = int(rows.offset[place]), int(rows.size[place])
        if self._remote[shard]:
            data = self._file(shard, chunk).read(offset - rows.start, size)
        else:
            data = self._file(shard, _WHOLE).read(offset, size)
        if len(data) < size:
            key = self.rows.index(shard).key(row)
            raise DataError(
                f"{self._shards[shard].name} ends before byte {offset + size}, where sample {key!r} does",
                f"{self._shards[shard].bytes} bytes, as in the manifest",
                "copy the shard again, or prepare the dataset again",
            )
        return data

    def key(self, sample: int) -> tuple[str, str]:
        """Shard name and key of a sample."""
        shard, row = self.rows.locate(np.array([sample]))
        return self._shards[int(shard[0])].name, self.rows.index(int(shard[0])).key(int(row[0]))

    def announce(self, ids: I64) -> None:
        """These samples will be read soon: get their chunks ready while others are read.

        Of local files the kernel is told; remote chunks are fetched. What goes wrong there is raised when
        the chunk is read.
        """
        shards, rows = self.rows.locate(ids)
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        for shard, chunk in np.unique(np.stack([shards, rows // self._chunk]), axis=1).T.tolist():
            self._ahead.submit(self._get_ready, shard, chunk)

    def close(self) -> None:
        """Drop what is announced and not yet fetched."""
        if self._ahead is not None:
            self._ahead.shutdown(wait=True, cancel_futures=True)
            self._ahead = None

    def _get_ready(self, shard: int, chunk: int) -> None:
        with suppress(VitlineError):
            rows = self.rows.chunk(shard, chunk)
            if self._remote[shard]:
                self._file(shard, chunk)
            else:
                file, length = self._file(shard, _WHOLE), rows.end - rows.start
                os.posix_fadvise(file.descriptor, rows.start, length, os.POSIX_FADV_WILLNEED)

    def _file(self, shard: int, chunk: int) -> OpenFile:
        with self._lock:
            file = self._files.get((shard, chunk))
            if file is not None:
                self._files.move_to_end((shard, chunk))
                return file
        file = self._open(shard) if chunk == _WHOLE else self._open_chunk(shard, chunk)
        with self._lock:
            self._files[shard, chunk] = file
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return file

    def _open(self, shard: int) -> OpenFile:
        path = self._directory / self._shards[shard].name
        try:
            return OpenFile(path)
        except OSError as error:
            raise DataError(
                f"shard {path} cannot be opened ({error.strerror})",
                "the shards that the manifest names",
                "put it back, or prepare the dataset again",
            ) from error

    def _open_chunk(self, shard: int, chunk: int) -> OpenFile:
        assert self._cache is not None, "a remote dataset without a cache"
        rows = self.rows.chunk(shard, chunk)

        def fetch() -> bytes:
            file = RemoteFile(self._shards[shard].name)
            return file.read(rows.start, rows.end, lambda data: chunk_digest(data) == rows.digest)

        return self._cache.open(rows.digest.hex(), rows.end - rows.start, fetch)

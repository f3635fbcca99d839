"""Local files, read at any offset by any number of threads."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.data.tar import ReadAt


class OpenFile:
    """A file open for reading at any offset; closed when the last user lets go of it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the file."""
        data = os.pread(self.descriptor, size, offset)
        while len(data) < size:
            more = os.pread(self.descriptor, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


@contextmanager
def file_reader(path: Path) -> Iterator[ReadAt]:
    """A function (offset, size) → bytes of one local file."""
    file = OpenFile(path)
    yield file.read

"""Faults of the surroundings, as messages: a disk that takes nothing more, another rank that is gone."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import EnvironmentUnfit

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
# What gloo and NCCL say when a peer has ended; PyTorch raises a bare RuntimeError.
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@contextmanager
def disk_faults_named(directory: Path) -> Iterator[None]:
    """Raise EnvironmentUnfit where a file of a job, in `directory`, could not be written inside."""
    try:
        yield
    except OSError as error:
        # A failed write names no file.
        elsewhere = isinstance(error.filename, str) and not Path(error.filename).is_relative_to(directory)
        if elsewhere or error.errno not in _DISK:
            raise
        raise EnvironmentUnfit(
            f"{directory} cannot be written to: {error}",
            "room and permission for the files of the job",
            "free space or repair the disk; the run continues from the last complete checkpoint",
        ) from error


def lost_rank(error: Exception) -> EnvironmentUnfit | None:
    """What to say when a rank fails only because another has ended; None: it failed by itself."""
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _GONE):
        return None
    return EnvironmentUnfit(
        "another rank has ended",
        "all ranks until the end",
        "look at what that rank said; if it was killed, run the same command again",
    )

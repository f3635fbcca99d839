"""Byte ranges of files on s3, gs and http(s), by fsspec, again until they are right.

A range counts as read when its length and its check agree. Between tries a reader waits longer and
longer, with jitter, so that many nodes do not return together. No shell is involved, and schemes other
than these are refused.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import fsspec

from pipeline.errors import DataError, EnvironmentUnfit, ReadError, UserError

_T = TypeVar("_T")
SCHEMES = ("s3", "gs", "http", "https")
TRIES = 7
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
STALL_S = 20.0  # without a byte: the connection is given up
_BLOCK = 16 * 2**20

# Faults of a program, not of a network.
_OWN_FAULTS = (TypeError, AttributeError, NameError, AssertionError)


def is_remote(name: str) -> bool:
    """Whether `name` is a URL.

    Raises:
        UserError: of a scheme that we do not read.
    """
    scheme, separator, _ = name.partition("://")
    if not separator:
        return False
    if scheme not in SCHEMES:
        raise UserError(f"the location {name!r}", f"a path, or a URL of {', '.join(SCHEMES)}", "correct it")
    return True


def scheme_of(url: str) -> str:
    return url.partition("://")[0]


def filesystem(scheme: str) -> Any:
    """The fsspec filesystem of a scheme, one for each process; it remembers no listings."""
    return _filesystem(scheme, STALL_S)


@cache
def _filesystem(scheme: str, stall_s: float) -> Any:
    options: dict[str, Any] = {"use_listings_cache": False}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=stall_s, sock_read=stall_s)
    if scheme in ("http", "https"):
        options["timeout"] = timeout
    elif scheme == "gs":
        options["session_kwargs"] = {"timeout": timeout}
    elif scheme == "s3":
        waits = {"connect_timeout": stall_s, "read_timeout": stall_s, "retries": {"max_attempts": 1}}
        options["config_kwargs"] = waits
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gcs"}.get(scheme, "dev")
        raise EnvironmentUnfit(
            f"{scheme}:// cannot be read here ({error})",
            f"the extra {extra!r} of vitline",
            f"pip install 'vitline[{extra}]' from the checkout or the wheel",
        ) from error


class GaveUp(Exception):
    """No try succeeded; its text is the beginning of the last fault."""


def keep_trying(
    action: Callable[[], _T],
    tries: int,
    *,
    growth: int = 2,
    final: tuple[type[Exception], ...] = (),
    told: Callable[[str], None] = lambda fault: None,
) -> _T:
    """What `action` returns, tried again with longer and longer waits.

    Args:
        growth: of the longest wait from one try to the next.
        final: faults that no other try can help.
        told: called with each fault.

    Raises:
        GaveUp: after so many tries.
    """
    last = ""
    at_once: tuple[type[Exception], ...] = (*final, *_OWN_FAULTS)
    for attempt in range(tries):
        if attempt:
            longest = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * growth**attempt)
            time.sleep(longest * random.uniform(0.5, 1.0))
        try:
            return action()
        except at_once:
            raise
        except Exception as error:
            last = f"{type(error).__name__}: {error}"
            told(last)
    raise GaveUp(last[:200])


def answer_of(ask: Callable[[], _T]) -> _T:
    """What a store answers, with its faults called by their names.

    fsspec says of any trouble on the way to an HTTP server, when asked for a file's length, that there is
    no such file, and names a refusal like a fault that passes.

    Raises:
        FileNotFoundError: there is really none.
        PermissionError: this account may not read it.
    """
    try:
        return ask()
    except (FileNotFoundError, aiohttp.ClientResponseError) as error:
        cause = error.__cause__ or error
        status = cause.status if isinstance(cause, aiohttp.ClientResponseError) else 0
        if status in (401, 403):
            raise PermissionError(str(cause)) from error
        if status in (404, 410) or not isinstance(cause, aiohttp.ClientError | TimeoutError):
            raise
        raise cause from None


def ask_store(ask: Callable[[], _T], tries: int) -> _T:
    """What a store answers in some tries.

    Raises:
        FileNotFoundError, PermissionError: see `answer_of`.
        GaveUp: it gives no answer.
    """
    return keep_trying(lambda: answer_of(ask), tries, final=(FileNotFoundError, PermissionError))


class RemoteFile:
    """One file, read in ranges."""

    def __init__(self, url: str, *, tries: int | None = None) -> None:
        is_remote(url)
        self.url = url
        self._tries = tries or TRIES
        self._files = filesystem(scheme_of(url))

    def size(self) -> int:
        """Its length, bytes."""
        size = self._again("its size", lambda: self._files.size(self.url))
        if size is None:
            raise DataError(
                f"{self.url} does not say its length",
                "a server that does",
                "copy the shards to another server",
            )
        return int(size)

    def read(self, start: int, end: int, check: Callable[[bytes], bool] = lambda data: True) -> bytes:
        """Bytes start … end-1.

        Raises:
            DataError: there is no such file, it may not be read, or the server sends no ranges.
            ReadError: it could not be read in all tries, or `check` refused what came.
        """

        def get() -> bytes:
            data: bytes = self._files.cat_file(self.url, start=start, end=end)
            if len(data) < end - start:
                raise OSError(f"{len(data)} bytes came instead of {end - start}")
            if len(data) == end - start and not check(data):
                raise OSError("the bytes do not have the hash in the index")
            return data

        data = bytes(self._again(f"bytes {start} to {end}", get))
        if len(data) > end - start:
            raise DataError(
                f"{len(data)} bytes of {self.url}, of which bytes {start} to {end} were asked for",
                "a server that sends ranges of a file",
                "serve the shards by another one: nginx, Apache and object stores do, Python's does not",
            )
        return data

    def blocks(self, size: int) -> Iterator[bytes]:
        """All of its `size` bytes in order, some MiB at a time; in two parts at least, so that a server
        without ranges is found out now, and not when chunks are read."""
        step = min(_BLOCK, max(1, -(-size // 2)))
        for start in range(0, size, step):
            yield self.read(start, min(size, start + step))

    def _again(self, what: str, get: Callable[[], Any]) -> Any:
        try:
            return ask_store(get, self._tries)
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(
                f"{self.url} cannot be read ({type(error).__name__}: {error})",
                "a file that exists and may be read",
                "correct the location, or the rights of this account",
            ) from error
        except GaveUp as last:
            raise ReadError(
                f"{what} of {self.url} did not arrive in {self._tries} tries (last: {last})",
                "a store that answers, and bytes with the hash in the index",
                "check the network and the store; run again: a shard that was changed is indexed anew",
            ) from None


@contextmanager
def local_copy(name: str, directory: Path) -> Iterator[Path]:
    """A path as it is, or a remote file as a copy in `directory` that is deleted afterwards."""
    if not is_remote(name):
        yield Path(name)
        return
    remote = RemoteFile(name)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".copy-") as file:
        for block in remote.blocks(remote.size()):
            file.write(block)
        file.flush()
        yield Path(file.name)

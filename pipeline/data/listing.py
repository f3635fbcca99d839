"""Which shards lie under a directory or a prefix of a store, and when each was last written.

    local     one look at the directory
    s3, gs    one listing
    http(s)   the links of the server's page, then one HEAD each

None of their bytes is read.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.remote import GaveUp, ask_store, filesystem, is_remote, scheme_of
from pipeline.errors import EnvironmentUnfit, UserError

_T = TypeVar("_T")
_TRIES = 3  # who asks will ask again at the next tick
_AT_ONCE = 32
_SUFFIX = ".tar"
# The stores' words for the time of the last change: a time, or text in one of two forms.
_TIMES = ("LastModified", "Last-Modified", "updated")


@dataclass(frozen=True)
class Entry:
    """One shard: its name, its path or URL, its bytes, and when it was written; None: nobody says."""

    name: str
    place: str
    bytes: int
    written_ns: int | None


def list_shards(place: str) -> list[Entry]:
    """The *.tar directly under `place`, a directory or a URL, by name.

    Raises:
        UserError: there is no such directory, page or bucket, or it may not be listed.
        EnvironmentUnfit: the store does not answer.
    """
    found = _listed(place.rstrip("/")) if is_remote(place) else _local(Path(place))
    return sorted(found, key=lambda entry: entry.name)


def _local(directory: Path) -> list[Entry]:
    if not directory.is_dir():
        raise _absent(str(directory))
    files = [(file, file.stat()) for file in directory.glob(f"*{_SUFFIX}")]
    return [Entry(file.name, str(file), status.st_size, status.st_mtime_ns) for file, status in files]


def _listed(prefix: str) -> list[Entry]:
    files = filesystem(scheme_of(prefix))
    if scheme_of(prefix) in ("http", "https"):
        links = _ask(prefix, lambda: files.ls(f"{prefix}/", detail=False))
        urls = sorted({str(link) for link in links if str(link).endswith(_SUFFIX)})
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="listing") as pool:
            facts = list(pool.map(lambda url: _ask(url, lambda: files.info(url)), urls))
        return [_entry(prefix, url, info) for url, info in zip(urls, facts, strict=True)]
    try:
        listed = _keep_asking(prefix, lambda: files.ls(prefix, detail=True))
    except PermissionError as error:
        raise _absent(prefix, " (PermissionError)") from error
    except FileNotFoundError:
        # A store has no empty directories: nothing has arrived yet, or the bucket does not exist.
        _ask(prefix, lambda: files.ls("/".join(prefix.split("/")[:3]), detail=False))
        return []
    found = [(str(info["name"]), info) for info in listed if info.get("type") != "directory"]
    return [_entry(prefix, name, info) for name, info in found if name.endswith(_SUFFIX)]


def _entry(prefix: str, name: str, info: dict[str, Any]) -> Entry:
    base = name.rpartition("/")[2]
    time = next((info[key] for key in _TIMES if info.get(key)), None)
    return Entry(base, f"{prefix}/{base}", int(info.get("size") or 0), _nanoseconds(time))


def _nanoseconds(time: Any) -> int | None:
    if time is None:
        return None
    if isinstance(time, str):
        time = datetime.fromisoformat(time) if time[:4].isdigit() else parsedate_to_datetime(time)
    return round(float(time.timestamp())) * 10**9


def _ask(place: str, ask: Callable[[], _T]) -> _T:
    try:
        return _keep_asking(place, ask)
    except (FileNotFoundError, PermissionError) as error:
        raise _absent(place, f" ({type(error).__name__})") from error


def _keep_asking(place: str, ask: Callable[[], _T]) -> _T:
    """What a store answers in some tries.

    Raises:
        FileNotFoundError, PermissionError: its own words.
        EnvironmentUnfit: it gives none.
    """
    try:
        return ask_store(ask, _TRIES)
    except GaveUp as last:
        raise EnvironmentUnfit(
            f"no answer about {place} (last: {last})",
            "a store that says what lies there",
            "check the network and the store; the next tick asks again",
        ) from None


def _absent(place: str, how: str = "") -> UserError:
    return UserError(
        f"no directory {place} that can be read{how}",
        "the one in which shards appear",
        "correct retrain.data.watch, or the rights of this account",
    )

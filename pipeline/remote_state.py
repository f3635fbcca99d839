"""A run's files at a URL, and the lease that lies beside them.

    URL/NAME/
      lease.json, turn.json       who drives the run, and how many drivers had it
      config.resolved.yaml, events.jsonl, jobs/DIGEST/…    as in the run's directory (rundir.py)

Every call tries again for a while; what then still fails is one message. What is mirrored, and when, is
decided in keeping.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pipeline.data.remote import GaveUp, keep_trying
from pipeline.data.writable import json_object, open_directory
from pipeline.errors import EnvironmentUnfit
from pipeline.lease import Holder
from pipeline.rundir import write_atomic

_T = TypeVar("_T")
_TRIES = 5
_AT_ONCE = 16  # requests; most files of a run are small
_LEASE, _TURN = "lease.json", "turn.json"
_NOT_STATE = {_LEASE, _TURN}


@dataclass(frozen=True)
class Stored:
    """One file there; `changed`: Unix time, None where the store does not say."""

    bytes: int
    changed: float | None


class RemoteState:
    """The state of one run at `url`, which ends with the run's name.

    Raises (every method):
        EnvironmentUnfit: the store does not answer, or refuses.
    """

    def __init__(self, url: str, tries: int = _TRIES) -> None:
        """Raises ConfigError for a URL that nothing can write to, EnvironmentUnfit for a missing package."""
        self._tries = tries
        self.url = url.rstrip("/")
        self._files, self._root, self._flat = open_directory(url, "remote")

    def files(self) -> dict[str, Stored]:
        """Name, relative to the run → what lies there."""

        def look() -> dict[str, Any]:
            try:
                found: dict[str, Any] = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
            return found

        entries = self._again("listing it", look)
        names = {path[len(self._root) :].lstrip("/"): entry for path, entry in entries.items()}
        return {
            name: Stored(int(entry["size"] or 0), _time_of(entry))
            for name, entry in names.items()
            if name not in _NOT_STATE
            and not name.rpartition("/")[2].startswith(".")
            # Names become paths: whoever may write to the store must not choose where we write.
            and ".." not in name.split("/")
        }

    def read(self, name: str) -> bytes | None:
        """A small file; None: there is none."""

        def get() -> bytes | None:
            try:
                data: bytes = self._files.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return data

        return self._again(f"reading {name}", get)

    def read_all(self, names: Iterable[str]) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = {}

        def get(name: str) -> None:
            found[name] = self.read(name)

        self._each(names, get)
        return found

    def read_json(self, name: str) -> dict[str, Any] | None:
        """None: there is none, or it is no JSON object."""
        return json_object(self.read(name))

    def write(self, name: str, data: bytes) -> None:
        self._again(
            f"writing {name}", lambda: self._whole(name, lambda path: self._files.pipe_file(path, data))
        )

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there; False: it is."""

        def put() -> bool:
            self._make_room(name)
            try:
                self._files.pipe_file(self._path(name), data, mode="create")
            except FileExistsError:
                return False
            return True

        return self._again(f"creating {name}", put)

    def remove(self, names: Iterable[str]) -> None:
        def gone(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):
                self._files.rm_file(self._path(name))

        self._each(names, lambda name: self._again(f"removing {name}", lambda: gone(name)))

    def upload(self, run: Path, names: Iterable[str]) -> None:
        """Put files of the run's directory there; one that has gone meanwhile is left out."""

        def put(name: str) -> None:
            # What has gone was replaced by a later state of the run, which the next look finds.
            if (run / name).exists():
                self._whole(name, lambda path: self._files.put_file(str(run / name), path))

        self._each(names, lambda name: self._again(f"writing {name}", lambda: put(name)))

    def write_all(self, contents: Mapping[str, bytes]) -> None:
        self._each(contents, lambda name: self.write(name, contents[name]))

    def download(self, run: Path, names: Iterable[str]) -> None:
        """Fetch files into the run's directory; each is whole or not there."""

        def get(name: str) -> None:
            to = run / name
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(f".{to.name}.part")
            self._files.get_file(self._path(name), str(part))
            part.rename(to)

        self._each(names, lambda name: self._again(f"fetching {name}", lambda: get(name)))

    @property
    def turn(self) -> int:
        """How many drivers had the run so far; 0: none."""
        return int((self.read_json(_TURN) or {}).get("turn", 0))

    @turn.setter
    def turn(self, number: int) -> None:
        self.write(_TURN, json.dumps({"turn": number}).encode())

    def _each(self, names: Iterable[str], action: Callable[[str], object]) -> None:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="remote-state") as threads:
            for future in [threads.submit(action, name) for name in names]:
                future.result()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _whole(self, name: str, put: Callable[[str], object]) -> None:
        """Object stores show an object once it is complete; files are written beside and renamed."""
        path = self._path(name)
        if self._flat:
            put(path)
            return
        self._make_room(name)
        directory, _, base = path.rpartition("/")
        put(f"{directory}/.{base}.part")
        self._files.mv(f"{directory}/.{base}.part", path)

    def _make_room(self, name: str) -> None:
        if not self._flat:
            self._files.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)

    def _again(self, what: str, action: Callable[[], _T]) -> _T:
        try:
            return keep_trying(action, self._tries, growth=4)
        except GaveUp as last:
            raise EnvironmentUnfit(
                f"{what} of remote {self.url} failed in {self._tries} tries (last: {last})",
                "a store that answers and may be written to",
                "check the URL, the rights and the network, then run again",
            ) from None


class RemoteLease:
    """The lease of a run at a URL, a place of pipeline/lease.py. S3 and GCS let one of two writers create it;
    on a store that cannot do that, two drivers that start in the same second are told apart only after it."""

    def __init__(self, url: str) -> None:
        # One that does not answer now is asked again at the next heartbeat.
        self._state = RemoteState(url, tries=2)
        self.name = f"{self._state.url}/{_LEASE}"

    def create(self, holder: Holder) -> bool:
        return self._state.create(_LEASE, json.dumps(holder).encode())

    def read(self) -> Holder | None:
        data = self._state.read(_LEASE)
        return None if data is None else json_object(data) or {}

    def replace(self, holder: Holder) -> None:
        self._state.write(_LEASE, json.dumps(holder).encode())

    def remove(self) -> None:
        self._state.remove([_LEASE])

    def bury(self, owner: str) -> None:
        self.remove()


def look_at(state: RemoteState, into: Path, wanted: Callable[[str], bool]) -> None:
    """Fetch the files whose names are `wanted`, and the lease, for a reader; what is there with the same
    size and no older is kept.

    Raises:
        EnvironmentUnfit: the store does not answer.
    """
    names = [
        name for name, there in state.files().items() if wanted(name) and not _is_same(into / name, there)
    ]
    state.download(into, names)
    lease = state.read(_LEASE)
    if lease is None:
        (into / _LEASE).unlink(missing_ok=True)
    else:
        write_atomic(into / _LEASE, lease)


def _is_same(here: Path, there: Stored) -> bool:
    try:
        found = here.stat()
    except FileNotFoundError:
        return False
    return found.st_size == there.bytes and there.changed is not None and found.st_mtime >= there.changed


def _time_of(entry: Mapping[str, Any]) -> float | None:
    """When it was changed, as the different stores say it."""
    value = entry.get("LastModified") or entry.get("mtime") or entry.get("updated")
    if isinstance(value, str):
        value = datetime.fromisoformat(value.replace("Z", "+00:00"))
    if isinstance(value, datetime):
        return value.timestamp()
    return float(value) if isinstance(value, int | float) else None

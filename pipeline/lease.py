"""One driver at a time: a lease with host, process and heartbeat, as a file and where else it is asked for.

A second driver is refused by name. The lease of a driver that died on this host is taken over at
once; of one elsewhere, when its heartbeat is older than `EXPIRY_S`. The heartbeat also looks whether
the lease still names this driver, so one that was taken over notices and stops.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import psutil

from pipeline.errors import Busy
from pipeline.rundir import read_json, write_json

log = logging.getLogger(__name__)

HEARTBEAT_S = 5.0
EXPIRY_S = 10 * HEARTBEAT_S

Holder = dict[str, Any]


class LeasePlace(Protocol):
    """Where one lease lies; `name` is for messages."""

    name: str

    def create(self, holder: Holder) -> bool:
        """Put it there; False: there is one already."""

    def read(self) -> Holder | None:
        """Who holds it; None: nobody; empty: it cannot be read, as its writer died."""

    def replace(self, holder: Holder) -> None: ...

    def remove(self) -> None: ...

    def bury(self, owner: str) -> None:
        """Remove a dead one; of two drivers that do it at once, the second removes nothing new."""


class FilePlace:
    """A file, on this disk or one that hosts share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = str(path)

    def create(self, holder: Holder) -> bool:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "w") as file:
            json.dump(holder, file)
        return True

    def read(self) -> Holder | None:
        try:
            return read_json(self._path)
        except ValueError:
            # Its writer died between creating and filling it, or is just at it: give it a moment.
            time.sleep(0.2)
            try:
                return read_json(self._path)
            except ValueError:
                return {}

    def replace(self, holder: Holder) -> None:
        write_json(self._path, holder)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def bury(self, owner: str) -> None:
        # Rename first: of two drivers that both see a dead holder only one succeeds.
        grave = self._path.with_name(f"{self._path.name}.{owner}")
        try:
            os.rename(self._path, grave)
        except FileNotFoundError:
            return
        grave.unlink()


class Lease:
    """Context manager: holds all its places while its body runs.

    Raises:
        Busy: another driver holds one of them.
    """

    def __init__(self, *places: Path | LeasePlace) -> None:
        self.lost = threading.Event()
        self._places = [FilePlace(place) if isinstance(place, Path) else place for place in places]
        self._held: list[LeasePlace] = []
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        try:
            for place in self._places:
                self._acquire(place)
        except BaseException:
            self._release()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost.is_set():
            self._release()

    def check(self) -> None:
        """Raises Busy when another driver has taken the lease over."""
        if self.lost.is_set():
            raise Busy(
                f"{self._places[-1].name} is another driver's now: this one was silent for {EXPIRY_S:.0f} s",
                "one driver a run",
                "leave the run to the other driver; `vitline status` shows it",
            )

    def confirm(self) -> None:
        """As `check`, and looks now. Raises besides what a place raises that does not answer."""
        if not all(self._is_ours(place) for place in self._held):
            self.lost.set()
        self.check()

    def _acquire(self, place: LeasePlace) -> None:
        for _ in range(3):
            # Read back: a store that knows no exclusive writing lets two write.
            if place.create(self._content()) and self._is_ours(place):
                self._held.append(place)
                return
            self._remove_if_dead(place)
        raise Busy(
            f"{place.name} is taken and given back all the time", "one driver a run", "wait, then run again"
        )

    def _remove_if_dead(self, place: LeasePlace) -> None:
        holder = place.read()
        if holder is None:
            return
        if not _is_dead(holder):
            since = time.strftime("%H:%M:%S", time.localtime(holder.get("since")))
            raise Busy(
                f"this run is driven by process {holder.get('pid')} on {holder.get('host')} since {since}",
                "one driver a run",
                f"wait for it, stop it there, or remove {place.name} if that host is gone for good",
            )
        place.bury(self._owner)

    def _release(self) -> None:
        for place in self._held:
            place.remove()

    def _content(self) -> Holder:
        process = psutil.Process()
        return {
            "owner": self._owner,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": process.pid,
            "pid_started": process.create_time(),
            "since": process.create_time(),
            "heartbeat": time.time(),
        }

    def _is_ours(self, place: LeasePlace) -> bool:
        holder = place.read()
        return holder is not None and holder.get("owner") == self._owner

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            for place in self._held:
                try:
                    if not self._is_ours(place):
                        self.lost.set()
                        return
                    place.replace(self._content())
                except Exception:
                    # A disk or store that does not answer. Whether another driver has come meanwhile is seen
                    # as soon as it does; until then neither can write there.
                    log.debug("no answer from %s", place.name, exc_info=True)


def live_holder(path: Path) -> Holder | None:
    """Who holds the lease at `path` and lives; None where nobody does."""
    holder = FilePlace(path).read()
    return None if holder is None or _is_dead(holder) else holder


def dead_holder(path: Path) -> Holder | None:
    """Who left the lease at `path` and has died; empty: while it wrote it. None: nobody."""
    holder = FilePlace(path).read()
    return holder if holder is not None and _is_dead(holder) else None


@cache
def _boot() -> str:
    """Names this start of this machine; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_dead(holder: Holder) -> bool:
    if not holder:
        return True
    # Copies of one image may share a name; a process is looked for only where it can be.
    if holder["host"] == socket.gethostname() and holder.get("boot", _boot()) == _boot():
        try:
            # A pid is used again; its start time tells whether it is the same process.
            started = psutil.Process(int(holder["pid"])).create_time()
            return abs(started - float(holder["pid_started"])) > 1.0
        except psutil.NoSuchProcess:
            return True
    return time.time() - float(holder["heartbeat"]) > EXPIRY_S

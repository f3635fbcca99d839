"""One driver at a time: a lease file with host, process and heartbeat.

A second driver is refused by name. The lease of a driver that died on this host is taken over at
once; of one elsewhere, when its heartbeat is older than `EXPIRY_S`. The heartbeat also looks whether
the file still names this driver, so one that was taken over notices and stops.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pipeline.errors import Busy
from pipeline.rundir import read_json, write_json

HEARTBEAT_S = 5.0
EXPIRY_S = 10 * HEARTBEAT_S


class Lease:
    """Context manager: holds `path` while its body runs.

    Raises:
        Busy: another driver holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = threading.Event()
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._acquire()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if not self.lost.is_set():
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises Busy when another driver has taken the lease over."""
        if self.lost.is_set():
            raise Busy(
                f"{self.path} now names another driver: this one was not seen for {EXPIRY_S:.0f} s",
                "one driver a run",
                "leave the run to the other driver; `vitline status` shows it",
            )

    def _acquire(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            try:
                descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
            except FileExistsError:
                self._remove_if_dead()
                continue
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._content(), file)
            return
        raise Busy(
            f"{self.path} is taken and given back all the time", "one driver a run", "wait, then run again"
        )

    def _remove_if_dead(self) -> None:
        holder = _read_holder(self.path)
        if holder is None:
            return
        if not _is_dead(holder):
            since = time.strftime("%H:%M:%S", time.localtime(holder.get("since")))
            raise Busy(
                f"this run is driven by process {holder.get('pid')} on {holder.get('host')} since {since}",
                "one driver a run",
                f"wait for it, stop it there, or remove {self.path} if that host is gone for good",
            )
        # Rename first: of two drivers that both see a dead holder only one succeeds.
        grave = self.path.with_name(f"{self.path.name}.{self._owner}")
        try:
            os.rename(self.path, grave)
        except FileNotFoundError:
            return
        grave.unlink()

    def _content(self) -> dict[str, Any]:
        process = psutil.Process()
        return {
            "owner": self._owner,
            "host": socket.gethostname(),
            "pid": process.pid,
            "pid_started": process.create_time(),
            "since": process.create_time(),
            "heartbeat": time.time(),
        }

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            holder = _read_holder(self.path)
            if holder is None or holder.get("owner") != self._owner:
                self.lost.set()
                return
            write_json(self.path, self._content())


def live_holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lease at `path` and lives; None where nobody does."""
    holder = _read_holder(path)
    return None if holder is None or _is_dead(holder) else holder


def _read_holder(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except ValueError:
        # Its writer died between creating and filling it, or is just at it: give it a moment.
        time.sleep(0.2)
        try:
            return read_json(path)
        except ValueError:
            return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    if not holder:
        return True
    if holder["host"] == socket.gethostname():
        try:
            # A pid is used again; its start time tells whether it is the same process.
            started = psutil.Process(int(holder["pid"])).create_time()
            return abs(started - float(holder["pid_started"])) > 1.0
        except psutil.NoSuchProcess:
            return True
    return time.time() - float(holder["heartbeat"]) > EXPIRY_S

"""Copies of checkpoints to a remote store, and back, while training goes on.

When a checkpoint is complete in the job's directory, every rank copies its own two files in a thread;
rank 0 then looks until all files are there with their sizes, puts the marker, and removes what has outlived
its use. The threads send nothing to other ranks. One checkpoint is copied at a time; of those that were
completed meanwhile the newest follows. A copy that fails is told and training goes on: the next one tries
again.

At the start the newest complete checkpoint of both places is taken (`fetch_newer`).
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import EnvironmentUnfit, VitlineError
from pipeline.rundir import sync_directory, write_atomic
from pipeline.train.blocks import Damaged
from pipeline.train.checkpoint import MARKER, Checkpoint, check_file, remove, stem_of
from pipeline.train.remote import RemoteCheckpoint, RemoteCheckpoints, remote_name
from pipeline.train.world import World

_LOOK_S = 0.5  # between two looks of rank 0 at the others' files
_PATIENCE_S = 1800.0  # for the others' files


class Copier:
    """Copies of one rank. `begin` and `finish` are called by all ranks together."""

    def __init__(
        self,
        remote: RemoteCheckpoints,
        world: World,
        keep: int,
        keep_every: int | None,
        report: Callable[[dict[str, Any]], None],
    ) -> None:
        self._remote = remote
        self._world = world
        self._keep, self._keep_every = keep, keep_every
        self._report = report
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._fault: str | None = None
        self._copied: dict[str, Any] | None = None  # an event to report
        self._waiting: Checkpoint | None = None
        self._path: Path | None = None

    @property
    def spare(self) -> set[str]:
        """Names of local checkpoints that are still needed."""
        needed = [self._path] if self._thread is not None else []
        needed += [self._waiting.path] if self._waiting is not None else []
        return {path.name for path in needed if path is not None}

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copy this one next; at once if no rank is busy."""
        self._waiting = checkpoint
        self._advance()

    def finish(self) -> None:
        """Wait until the newest checkpoint has been copied, or could not be."""
        while self._advance():
            if self._thread is not None:
                self._thread.join(_LOOK_S)

    def _advance(self) -> bool:
        """Look at all ranks' threads, begin what is waiting; whether there is still something to do."""
        states = self._world.gather((self._busy, self._fault))
        faults = [f"rank {rank}: {fault}" for rank, (_, fault) in enumerate(states) if fault is not None]
        if faults:
            self._given_up.set()
        if any(busy for busy, _ in states):
            return True
        self._settle(faults)
        if self._waiting is None:
            return False
        checkpoint, self._waiting = self._waiting, None
        self._given_up.clear()
        self._path = checkpoint.path
        self._thread = threading.Thread(target=self._copy, args=(checkpoint,), daemon=True)
        self._thread.start()
        return True

    @property
    def _busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _settle(self, faults: list[str]) -> None:
        """The last copy has ended everywhere: say how."""
        if faults and self._path is not None:
            message = f"{self._path.name} was not copied to {self._remote.url} ({faults[0]})"
            self._report({"event": "warning", "message": message})
        elif self._copied is not None:
            self._report(self._copied)
        self._thread, self._fault, self._copied = None, None, None

    def _copy(self, checkpoint: Checkpoint) -> None:
        began = time.monotonic()
        try:
            marker = (checkpoint.path / MARKER).read_bytes()
            name = remote_name(checkpoint.path.name, marker)
            files: dict[str, Any] = checkpoint.record["files"]
            stem = stem_of(self._world.rank, self._world.size)
            for file in (f"{stem}.safetensors", f"{stem}.json"):
                check_file(checkpoint, file)
                self._remote.upload(name, checkpoint.path / file)
            if self._world.rank == 0 and self._all_there(name, files):
                self._remote.mark(name, marker)
                best = checkpoint.record.get("best")
                spare = () if best is None else (int(best["step"]),)
                self._remote.retain(self._keep, self._keep_every, spare)
                self._copied = {
                    "event": "copied",
                    "step": checkpoint.step,
                    "bytes": sum(int(file["bytes"]) for file in files.values()),
                    "seconds": time.monotonic() - began,
                }
        except Exception as error:  # told by `_settle`
            self._fault = error.found if isinstance(error, VitlineError) else f"{error}"

    def _all_there(self, name: str, files: dict[str, Any]) -> bool:
        """Wait for the files of all ranks. False: another rank could not put its own."""
        deadline = time.monotonic() + _PATIENCE_S
        for file, expected in files.items():
            while self._remote.size(name, file) != expected["bytes"]:
                if self._given_up.wait(_LOOK_S):
                    return False
                if time.monotonic() > deadline:
                    raise EnvironmentUnfit(
                        f"{file} did not appear", "the files of all ranks", "check the other ranks' network"
                    )
        return True


def fetch_newer(
    remote: RemoteCheckpoints,
    root: Path,
    local: Checkpoint | None,
    world: World,
    warn: Callable[[str], None],
) -> Checkpoint | None:
    """The newest good checkpoint of both places, in the job's directory; all ranks together.

    Each rank fetches its share of the files. A damaged copy is told, and the one before is taken.
    """
    for found in world.on_first(remote.complete):
        if local is not None and found.step <= local.step:
            return local
        path = root / found.local_name
        world.on_first(partial(_make_room, path))
        faults = [fault for fault in world.gather(_fetch(remote, found, path, world)) if fault is not None]
        if not faults:
            if world.rank == 0:
                write_atomic(path / MARKER, found.marker)
                sync_directory(root)
            world.barrier()
            return Checkpoint(path, found.record)
        warn(f"the copy {found.name} is damaged ({faults[0]}); going back to the one before")
        if world.rank == 0:
            shutil.rmtree(path, ignore_errors=True)
    return local


def _make_room(path: Path) -> None:
    remove(path)
    path.mkdir(parents=True)


def _fetch(remote: RemoteCheckpoints, found: RemoteCheckpoint, path: Path, world: World) -> str | None:
    """Fetch this rank's share of the files; the first fault."""
    for file in sorted(found.record["files"])[world.rank :: world.size]:
        if remote.size(found.name, file) is None:
            return f"{file} is gone"
        remote.download(found.name, file, path / file)
        try:
            check_file(Checkpoint(path, found.record), file)
        except Damaged as fault:
            return str(fault)
    return None

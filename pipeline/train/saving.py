"""Saves a checkpoint while training goes on (layout in checkpoint.py).

    start      every rank copies its fragments to host memory: the only stall; a thread writes them
    settled    the thread of this rank is done; ranks tell each other at each step boundary
    complete   all are: rank 0 looks at every file, checks the fence, writes COMPLETE, removes old ones,
               and a copy to the remote store begins where there is one (copying.py)

An attempt that a newer one has replaced (a host that was cut off and comes back) is fenced: it may not
complete anything. The thread sends nothing to other ranks, so it cannot disturb training's collectives.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import EnvironmentUnfit
from pipeline.rundir import sync_directory, write_atomic, write_json
from pipeline.train.best import write_best
from pipeline.train.blocks import blocks_of
from pipeline.train.cadence import SaveCost
from pipeline.train.checkpoint import FORMAT, MARKER, Checkpoint, directory_of, remove, retain, stem_of
from pipeline.train.copying import Copier
from pipeline.train.fileindex import FileIndex, decode, encode
from pipeline.train.fragments import Fragment
from pipeline.train.tensorfile import write_tensors
from pipeline.train.world import World


@dataclass
class _Save:
    path: Path
    step: int
    record: dict[str, Any]
    stall_s: float
    thread: threading.Thread
    write_s: float = 0.0
    fault: BaseException | None = None


class Saver:
    """Saves of one rank, one at a time."""

    def __init__(
        self,
        root: Path,
        world: World,
        keep: int,
        check_fence: Callable[[], None],
        report: Callable[[Mapping[str, Any]], None],
        *,
        keep_every: int | None = None,
        copier: Copier | None = None,
    ) -> None:
        """
        Args:
            keep: newest complete checkpoints that stay.
            keep_every: steps; the first checkpoint at or after each multiple stays for good.
            copier: copies each completed checkpoint to a remote store.
            check_fence: raises Busy when a newer attempt has replaced this one.
            report: told about each completed checkpoint.
        """
        self._root = root
        self._world = world
        self._keep = keep
        self._check_fence = check_fence
        self._report = report
        self._keep_every = keep_every
        self._copier = copier
        self._host: dict[str, torch.Tensor] = {}  # reused, so that only the first save allocates
        self._save: _Save | None = None
        self.last_step = -1
        self.cost = SaveCost(0.0, 0.0)  # of the last complete one

    @property
    def active(self) -> bool:
        """A save has begun and is not complete; the same on all ranks."""
        return self._save is not None

    @property
    def settled(self) -> bool:
        """This rank has nothing left to write."""
        return self._save is None or not self._save.thread.is_alive()

    def start(
        self, step: int, fragments: list[Fragment], record: Mapping[str, Any], meters: Mapping[str, float]
    ) -> None:
        """Begin a save of the state after `step`; all ranks together. Waits for the one before."""
        began = time.perf_counter()
        self._finish_save()
        path = directory_of(self._root, step)
        _on_first(self._world, lambda: self._prepare(path))
        copies = {f"{f.name}|{f.kind}|{f.start}": self._to_host(f) for f in fragments}
        thread = threading.Thread(target=self._write, args=(path, copies, dict(meters)), daemon=True)
        self._save = _Save(path, step, dict(record), time.perf_counter() - began, thread)
        thread.start()

    def finish(self) -> None:
        """Wait until the present save, if any, is complete, and its copy too; all ranks together."""
        self._finish_save()
        if self._copier is not None:
            self._copier.finish()

    def _finish_save(self) -> None:
        if self._save is not None:
            self._save.thread.join()
            self.complete()

    def complete(self) -> None:
        """Mark the save as complete: every rank has settled. Raises on all ranks if one of them failed."""
        assert self._save is not None, "there is no save to complete"
        save, self._save = self._save, None
        self._world.barrier()
        ended = self._world.gather(
            (None if save.fault is None else f"{save.fault}", save.stall_s, save.write_s)
        )
        for rank, (fault, _, _) in enumerate(ended):
            if fault is not None:
                raise EnvironmentUnfit(
                    f"rank {rank} could not write {save.path}: {fault}",
                    "room and permission to write checkpoints",
                    "free space or repair the disk; the run continues from the last complete checkpoint",
                )
        record: dict[str, Any] = _on_first(self._world, lambda: self._mark(save))
        self.last_step = save.step
        self.cost = SaveCost(max(stall for _, stall, _ in ended), max(write for _, _, write in ended))
        self._report({"event": "checkpoint", "step": save.step, "stall_s": save.stall_s})
        if self._copier is not None:
            self._copier.begin(Checkpoint(save.path, record))

    def _prepare(self, path: Path) -> None:
        self._check_fence()
        if path.exists():
            remove(path)  # damaged, or left over by an attempt that ended in the middle
        path.mkdir(parents=True)

    def _to_host(self, fragment: Fragment) -> torch.Tensor:
        key = f"{fragment.name}|{fragment.kind}|{fragment.start}"
        if key not in self._host:
            pinned = fragment.data.device.type == "cuda"
            self._host[key] = torch.empty(len(fragment.data), dtype=torch.float32, pin_memory=pinned)
        return self._host[key].copy_(fragment.data)

    def _write(self, path: Path, copies: Mapping[str, torch.Tensor], meters: Mapping[str, float]) -> None:
        save = self._save
        assert save is not None, "the writer started before the save was noted"
        stem = stem_of(self._world.rank, self._world.size)
        began = time.perf_counter()
        try:
            written = write_tensors(path / f"{stem}.safetensors", copies)
            tensors = {key: (written.at[key], tensor.numel()) for key, tensor in copies.items()}
            write_atomic(path / f"{stem}.json", encode(FileIndex(written.blocks, tensors), meters))
            save.write_s = time.perf_counter() - began
        except Exception as error:  # told to all ranks by `complete`
            save.fault = error

    def _mark(self, save: _Save) -> dict[str, Any]:
        files: dict[str, Any] = {}
        for rank in range(self._world.size):
            stem = stem_of(rank, self._world.size)
            index_path = save.path / f"{stem}.json"
            stored = decode(index_path.read_bytes()).blocks
            found = (save.path / f"{stem}.safetensors").stat().st_size
            if found != stored.size:
                raise EnvironmentUnfit(
                    f"{stem}.safetensors of {save.path} has {found} bytes",
                    f"the {stored.size} that rank {rank} wrote",
                    "check the file system that the ranks share",
                )
            for name, blocks in ((f"{stem}.safetensors", stored), (f"{stem}.json", blocks_of(index_path))):
                files[name] = {"bytes": blocks.size, "hash": blocks.hash}
        sync_directory(save.path)
        self._check_fence()
        record = {**save.record, "format": FORMAT, "step": save.step, "files": files}
        write_json(save.path / MARKER, record)
        sync_directory(self._root)
        spare = set() if self._copier is None else self._copier.spare
        best = write_best(self._root, record.get("best"))
        spare |= set() if best is None else {best}
        retain(self._root, self._keep, self._keep_every, spare)
        return record


def _on_first(world: World, action: Callable[[], Any]) -> Any:
    """Do something with files on rank 0; its result on all ranks, or its error."""

    def files() -> Any:
        try:
            return action()
        except OSError as error:
            raise EnvironmentUnfit(
                f"a checkpoint could not be written: {error}",
                "room and permission to write checkpoints",
                "free space or repair the disk; the run continues from the last complete checkpoint",
            ) from error

    return world.on_first(files)

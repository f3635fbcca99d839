"""What a checkpoint is on disk, which one to resume from, and which to remove.

    checkpoints/step-000001000/
      rank-00000-of-00016.safetensors   fragments, keys NAME|KIND|START (pipeline/train/fragments.py)
      rank-00000-of-00016.json          sizes, hash, this rank's meters
      COMPLETE                          JSON: step, position, loader state, digest, shapes, hashes
    checkpoints/best.json               which one is the best, where that is asked for (best.py)

`COMPLETE` is written last, by rename, after the files of all ranks were seen in place (saving.py). A
directory without it does not exist for us and is swept when the next attempt starts. The newest
complete one whose hashes agree is the place to resume (loading.py); a damaged one loses its marker,
and the one before is taken, said aloud.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import EnvironmentUnfit
from pipeline.rundir import read_json, sync_directory
from pipeline.train.tensorfile import hash_file
from pipeline.train.world import World

FORMAT = 1
MARKER = "COMPLETE"
DAMAGED = "DAMAGED"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint. `record` is the content of its marker."""

    path: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done when it was taken."""
        return int(self.record["step"])

    @property
    def device_seconds(self) -> float:
        """Seconds × ranks of all attempts. A checkpoint from before this was kept says the seconds of all
        attempts and the ranks of its own, which is as near as one can come."""
        record = self.record
        return float(record.get("device_seconds", record["seconds"] * record["world"]))


def directory_of(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def stem_of(rank: int, size: int) -> str:
    """Name of a rank's two files, without suffix."""
    return f"rank-{rank:05d}-of-{size:05d}"


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Those with a readable marker, newest first."""
    found = []
    for path in sorted(root.glob("step-*"), reverse=True):
        try:
            record = read_json(path / MARKER)
        except ValueError:  # a torn marker: possible only if someone copied files by hand
            continue
        if record is not None and record.get("format") == FORMAT:
            found.append(Checkpoint(path, record))
    return found


def find_checkpoint(root: Path, world: World, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint whose hashes agree, or None. All ranks together: each hashes its
    share of the files. `warn` is told about each damaged one, which loses its marker."""
    for path in world.from_first([c.path for c in complete_checkpoints(root)]):
        record = read_json(path / MARKER)
        assert record is not None, f"{path} lost its marker while it was looked at"
        checkpoint = Checkpoint(path, record)
        damages = [d for d in world.gather(damage(checkpoint, world.rank, world.size)) if d is not None]
        if not damages:
            return checkpoint
        warn(f"checkpoint {path.name} is damaged ({damages[0]}); going back to the one before")
        if world.rank == 0:
            (path / MARKER).rename(path / DAMAGED)
            sync_directory(path)
        world.barrier()
    return None


def damage(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> str | None:
    """The first fault among this part of the files: gone, another size, another hash. None: all well."""
    for name, expected in sorted(checkpoint.record["files"].items())[part::parts]:
        path = checkpoint.path / name
        try:
            found = hash_file(path)
        except FileNotFoundError:
            return f"{name} is gone"
        except OSError as error:
            raise EnvironmentUnfit(
                f"{path} cannot be read: {error.strerror}",
                "a readable checkpoint",
                "check the disk, then run again",
            ) from error
        if found.bytes != expected["bytes"]:
            return f"{name} has {found.bytes} bytes, expected {expected['bytes']}"
        if found.sha256 != expected["sha256"]:
            return f"the hash of {name} does not agree"
    return None


def sweep(root: Path) -> list[str]:
    """Remove what no attempt completed; called by rank 0 before an attempt's first save. Damaged ones stay
    while there is no other: something may be saved of them."""
    complete = {checkpoint.path for checkpoint in complete_checkpoints(root)}
    swept = [path for path in sorted(root.glob("step-*")) if path not in complete]
    if not complete:
        swept = [path for path in swept if not (path / DAMAGED).exists()]
    for path in swept:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in swept]


def retain(root: Path, keep: int, keep_every: int | None = None, spare: Collection[str] = ()) -> None:
    """Remove the complete checkpoints that `outlived` names but for those in `spare` (names), marker
    first: what is half removed is incomplete, never damaged."""
    found = {checkpoint.step: checkpoint.path for checkpoint in complete_checkpoints(root)}
    for step in outlived(found, keep, keep_every):
        if found[step].name not in spare:
            remove(found[step])


def outlived(steps: Iterable[int], keep: int, keep_every: int | None) -> list[int]:
    """Steps whose checkpoints may go: not among the newest `keep`, and not the first one at or after a
    multiple of `keep_every`. The newest always stays."""
    rising = sorted(steps)
    staying = set(rising[-max(1, keep) :])
    if keep_every is not None:
        first: dict[int, int] = {}
        for step in rising:
            first.setdefault(step // keep_every, step)
        staying |= {step for multiple, step in first.items() if multiple > 0}
    return [step for step in rising if step not in staying]


def remove(path: Path) -> None:
    (path / MARKER).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)

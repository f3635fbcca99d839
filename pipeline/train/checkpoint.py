"""What a checkpoint is on disk, which one to resume from, and which to remove.

    checkpoints/step-000001000/
      rank-00000-of-00016.safetensors   fragments, keys NAME|KIND|START (pipeline/train/fragments.py)
      rank-00000-of-00016.json          where each fragment stands, digests of the file's blocks, meters
      COMPLETE                          JSON: step, position, loader state, digest, shapes, hashes
    checkpoints/best.json               which one is the best, where that is asked for (best.py)

`COMPLETE` is written last, by rename, after the files of all ranks were seen in place (saving.py). A
directory without it does not exist for us and is swept when the next attempt starts. The newest
complete one whose hashes agree is the place to resume (loading.py); a damaged one loses its marker,
and the one before is taken, said aloud. One of another format is refused and left alone.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError, EnvironmentUnfit
from pipeline.rundir import read_json, sync_directory
from pipeline.train.blocks import Damaged, blocks_of

FORMAT = 2
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
        """Seconds × ranks of all attempts."""
        return float(self.record["device_seconds"])


def directory_of(root: Path, step: int) -> Path:
    return root / f"step-{step:09d}"


def stem_of(rank: int, size: int) -> str:
    """Name of a rank's two files, without suffix."""
    return f"rank-{rank:05d}-of-{size:05d}"


def complete_checkpoints(root: Path) -> list[Checkpoint]:
    """Those with a readable marker, newest first.

    Raises:
        ConfigError: one was written by another version of vitline.
    """
    found = []
    for path in sorted(root.glob("step-*"), reverse=True):
        try:
            record = read_json(path / MARKER)
        except ValueError:  # a torn marker: possible only if someone copied files by hand
            continue
        if record is not None:
            check_format(record, path)
            found.append(Checkpoint(path, record))
    return found


def check_format(record: Mapping[str, Any], where: object) -> None:
    """Refuse what another version wrote: taken for incomplete, it would be swept."""
    if record.get("format") != FORMAT:
        raise ConfigError(
            f"{where} is a checkpoint of format {record.get('format')}",
            f"format {FORMAT}, which this version of vitline reads and writes",
            "finish this training with the version that began it, or give the run another name",
        )


def mark_damaged(checkpoint: Checkpoint) -> None:
    """Take its marker away, on rank 0."""
    (checkpoint.path / MARKER).rename(checkpoint.path / DAMAGED)
    sync_directory(checkpoint.path)


def damage(checkpoint: Checkpoint) -> str | None:
    """The first fault among its files: gone, another size, another hash. None: all well."""
    try:
        for name in sorted(checkpoint.record["files"]):
            check_file(checkpoint, name)
    except Damaged as fault:
        return str(fault)
    return None


def check_file(checkpoint: Checkpoint, name: str) -> None:
    """Raises Damaged if the file `name` is not the one that the checkpoint's marker means."""
    expected = checkpoint.record["files"][name]
    with reading(checkpoint.path / name):
        found = blocks_of(checkpoint.path / name)
    if found.size != expected["bytes"]:
        raise Damaged(f"{name} has {found.size} bytes, expected {expected['bytes']}")
    if found.hash != expected["hash"]:
        raise Damaged(f"the hash of {name} does not agree")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what it means that `path` cannot be read inside."""
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path.name} is gone") from None
    except OSError as error:
        raise EnvironmentUnfit(
            f"{path} cannot be read: {error.strerror}",
            "a readable checkpoint",
            "check the disk, then run again",
        ) from error


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

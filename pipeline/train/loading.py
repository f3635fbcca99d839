"""Reads a checkpoint into the fragments that this rank owns now, or into whole tensors for export.

It does not matter by how many ranks, at which stage or by which engine it was written: each fragment
is filled from whatever stored ranges overlap it. Only the blocks of the files in which these lie are read,
once, into the memory where they belong, and checked there (blocks.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import ConfigError, DataError, EnvironmentUnfit
from pipeline.train.blocks import Blocks, Damaged, Piece, read_pieces
from pipeline.train.checkpoint import (
    Checkpoint,
    check_file,
    complete_checkpoints,
    mark_damaged,
    reading,
)
from pipeline.train.fileindex import decode
from pipeline.train.fragments import MASTER, Fragment
from pipeline.train.world import World

_BYTES = 4  # of a float32

Newer = Callable[[Checkpoint | None], Checkpoint | None]
"""Given the newest checkpoint that is here, one that is newer, or the same; all ranks together."""


@dataclass(frozen=True)
class _Range:
    """Elements [start, start + numel) of a flattened tensor, which begin at byte `at` of a file."""

    file: str
    at: int
    start: int
    numel: int


@dataclass(frozen=True)
class _Stored:
    """Where each (name, kind) lies, over the files of all ranks, and what these must hold."""

    directory: Path
    ranges: Mapping[tuple[str, str], list[_Range]]
    blocks: Mapping[str, Blocks]

    def pieces(self, name: str, kind: str, start: int, into: torch.Tensor) -> list[tuple[str, Piece]]:
        """Which bytes of which file are elements [start, start + len(into)) of a tensor, `into` being where
        they go (1-d, float32, contiguous, on the CPU).

        Raises:
            DataError: the checkpoint does not hold all of them.
        """
        memory = into.detach().numpy().data.cast("B") if len(into) else memoryview(b"")
        found, filled = [], 0
        for stored in self.ranges.get((name, kind), []):
            first = max(stored.start, start)
            last = min(stored.start + stored.numel, start + len(into))
            if first < last:
                at = stored.at + (first - stored.start) * _BYTES
                part = memory[(first - start) * _BYTES : (last - start) * _BYTES]
                found.append((stored.file, (at, part)))
                filled += last - first
        if filled != len(into):
            raise DataError(
                f"{filled} of {len(into)} elements of {name} ({kind}) in {self.directory.name}",
                "all of them",
                "the checkpoint is of another optimizer, or not whole; remove it to use the one before",
            )
        return found

    def read(self, pieces: list[tuple[str, Piece]]) -> None:
        """Raises Damaged."""
        by_file: dict[str, list[Piece]] = {}
        for file, piece in pieces:
            by_file.setdefault(file, []).append(piece)
        for file, wanted in by_file.items():
            path = self.directory / file
            with reading(path):
                read_pieces(path, self.blocks[file], wanted)


def fill_from_newest(
    root: Path,
    fragments: list[Fragment],
    shapes: Mapping[str, tuple[int, ...]],
    world: World,
    warn: Callable[[str], None],
    newer: Newer | None = None,
) -> Checkpoint | None:
    """Fill `fragments` in place from the newest complete checkpoint whose hashes agree, or return None. All
    ranks together: each checks what it reads, and what one finds damaged nobody uses.

    Args:
        shapes: of all parameters; ConfigError when the checkpoint is of another model.
        warn: told about each damaged one, which loses its marker.
        newer: where else to look.
    """
    while True:
        here: Checkpoint | None = world.on_first(lambda: next(iter(complete_checkpoints(root)), None))
        checkpoint = here if newer is None else newer(here)
        if checkpoint is None:
            return None
        damages = [fault for fault in world.gather(_fill(checkpoint, fragments, shapes)) if fault is not None]
        if not damages:
            return checkpoint
        if here is None or checkpoint.path != here.path:
            raise EnvironmentUnfit(
                f"{checkpoint.path} was fetched whole and is damaged now ({damages[0]})",
                "a disk that keeps what is written to it",
                "check the disk, then run again",
            )
        warn(f"checkpoint {checkpoint.path.name} is damaged ({damages[0]}); going back to the one before")
        if world.rank == 0:
            mark_damaged(checkpoint)
        world.barrier()


def _fill(
    checkpoint: Checkpoint, fragments: list[Fragment], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """What is damaged; None: all fragments are filled."""
    _check_shapes(checkpoint, shapes)
    try:
        stored = _stored(checkpoint)
        # A GPU's fragments pass through host memory, as they did when they were saved.
        hosts = [
            f.data if f.data.device.type == "cpu" else torch.empty(len(f.data), dtype=torch.float32)
            for f in fragments
        ]
        pieces = [
            piece
            for fragment, host in zip(fragments, hosts, strict=True)
            for piece in stored.pieces(fragment.name, fragment.kind, fragment.start, host)
        ]
        stored.read(pieces)
    except Damaged as fault:
        return str(fault)
    for fragment, host in zip(fragments, hosts, strict=True):
        if host is not fragment.data:
            fragment.data.copy_(host)
    return None


@contextmanager
def whole_reader(checkpoint: Checkpoint, kind: str = MASTER) -> Iterator[Callable[[str], torch.Tensor]]:
    """While inside, a function that reads a parameter's whole `kind` by its name, on the CPU."""
    try:
        stored = _stored(checkpoint)

        def read(name: str) -> torch.Tensor:
            whole = torch.empty(checkpoint.record["shapes"][name], dtype=torch.float32)
            stored.read(stored.pieces(name, kind, 0, whole.view(-1)))
            return whole

        yield read
    except Damaged as fault:
        raise DataError(
            f"checkpoint {checkpoint.path} is damaged ({fault})",
            "the files as they were written",
            "remove it, and run again to use the one before",
        ) from fault


def _stored(checkpoint: Checkpoint) -> _Stored:
    """From the indexes of all ranks. Raises Damaged."""
    ranges: dict[tuple[str, str], list[_Range]] = {}
    blocks = {}
    for name in checkpoint.record["files"]:
        path = checkpoint.path / name
        if path.suffix != ".json":
            continue
        with reading(path):
            check_file(checkpoint, name)
            index = decode(path.read_bytes())
        file = path.with_suffix(".safetensors").name
        blocks[file] = index.blocks
        for key, (at, numel) in index.tensors.items():
            parameter, kind, start = key.split("|")
            ranges.setdefault((parameter, kind), []).append(_Range(file, at, int(start), numel))
    return _Stored(checkpoint.path, ranges, blocks)


def _check_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    stored = {name: tuple(shape) for name, shape in checkpoint.record["shapes"].items()}
    if stored != dict(shapes):
        differing = sorted(set(stored.items()) ^ set(shapes.items()))[:3]
        raise ConfigError(
            f"{checkpoint.path} is of another model; differing: {differing}",
            "a checkpoint of the configured model",
            "use the configuration it was made with, or another run name",
        )

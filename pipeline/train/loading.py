"""Reads a checkpoint into the fragments that this rank owns now, or into whole tensors for export.

It does not matter by how many ranks, at which stage or by which engine it was written: each fragment
is filled from whatever stored ranges overlap it, and only those bytes are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pipeline.errors import ConfigError, DataError
from pipeline.train.checkpoint import Checkpoint
from pipeline.train.fragments import MASTER, Fragment


@dataclass(frozen=True)
class _Range:
    """Elements [start, start + numel) of one stored tensor."""

    file: Path
    key: str
    start: int
    numel: int


def load_fragments(
    checkpoint: Checkpoint, fragments: list[Fragment], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Fill `fragments` in place. Raises ConfigError when the checkpoint is of another model."""
    _check_shapes(checkpoint, shapes)
    stored = _index(checkpoint)
    with ExitStack() as stack:
        reader = _Reader(stack)
        for fragment in fragments:
            ranges = stored.get((fragment.name, fragment.kind), [])
            filled = sum(_copy(reader, found, fragment.start, fragment.data) for found in ranges)
            if filled != len(fragment.data):
                raise DataError(
                    f"{filled} of {len(fragment.data)} elements of {fragment.name} ({fragment.kind}) in "
                    f"{checkpoint.path.name}",
                    "all of them",
                    "the checkpoint is of another optimizer, or not whole; remove it to use the one before",
                )


@contextmanager
def whole_reader(checkpoint: Checkpoint, kind: str = MASTER) -> Iterator[Callable[[str], torch.Tensor]]:
    """While inside, a function that reads a parameter's whole `kind` by its name, on the CPU."""
    stored = _index(checkpoint)
    with ExitStack() as stack:
        reader = _Reader(stack)

        def read(name: str) -> torch.Tensor:
            whole = torch.empty(checkpoint.record["shapes"][name], dtype=torch.float32)
            flat = whole.view(-1)
            filled = sum(_copy(reader, found, 0, flat) for found in stored.get((name, kind), []))
            assert filled == len(flat), (
                f"{checkpoint.path} holds {filled} of {len(flat)} elements of {name} ({kind})"
            )
            return whole

        yield read


class _Reader:
    """Opens each file once."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._open: dict[Path, Any] = {}

    def __call__(self, file: Path, key: str, first: int, last: int) -> torch.Tensor:
        if file not in self._open:
            self._open[file] = self._stack.enter_context(safe_open(str(file), framework="pt"))
        part: torch.Tensor = self._open[file].get_slice(key)[first:last]
        return part


def _index(checkpoint: Checkpoint) -> dict[tuple[str, str], list[_Range]]:
    """Where each (name, kind) lies, over the files of all ranks."""
    stored: dict[tuple[str, str], list[_Range]] = {}
    for name in checkpoint.record["files"]:
        if not name.endswith(".json"):
            continue
        file = (checkpoint.path / name).with_suffix(".safetensors")
        for key, numel in json.loads((checkpoint.path / name).read_bytes())["numel"].items():
            parameter, kind, start = key.split("|")
            stored.setdefault((parameter, kind), []).append(_Range(file, key, int(start), numel))
    return stored


def _copy(reader: _Reader, stored: _Range, start: int, into: torch.Tensor) -> int:
    """Copy where `stored` overlaps elements [start, start + len(into)); the number copied."""
    first = max(stored.start, start)
    last = min(stored.start + stored.numel, start + len(into))
    if last <= first:
        return 0
    into[first - start : last - start] = reader(
        stored.file, stored.key, first - stored.start, last - stored.start
    )
    return last - first


def _check_shapes(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    stored = {name: tuple(shape) for name, shape in checkpoint.record["shapes"].items()}
    if stored != dict(shapes):
        differing = sorted(set(stored.items()) ^ set(shapes.items()))[:3]
        raise ConfigError(
            f"{checkpoint.path} is of another model; differing: {differing}",
            "a checkpoint of the configured model",
            "use the configuration it was made with, or another run name",
        )

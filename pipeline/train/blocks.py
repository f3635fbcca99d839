"""Hashes of files by blocks of 1 MiB, so that a rank which reads part of a file checks just that part, and
checks each block while it is still in the processor's cache.

    digest of a block    XXH3, 128 bits (github.com/Cyan4973/xxHash)
    hash of a file       the same over the digests of its blocks, in order

It finds what disks, networks and cut-off writes do to files. Against somebody who may write checkpoints no
hash in the same directory helps, so none that costs ten times as much is taken: SHA-256 was seven times the
work of reading (docs/results/checkpoint-speed.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

BLOCK = 2**20  # bytes: one fits into the cache of a core
DIGEST = 16  # bytes
_MOST_BUFFERS = os.sysconf("SC_IOV_MAX")  # of one system call

Piece = tuple[int, memoryview]
"""Where bytes stand in a file, and the writable memory that they go to."""


class Damaged(Exception):
    """A file is not what was written; the message says how, and names the file."""


@dataclass(frozen=True)
class Blocks:
    """Size of a file, and the digests of its blocks laid end to end."""

    size: int  # bytes
    digests: bytes

    @property
    def hash(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.digests)


class Hasher:
    """Digests of what is fed to it piece by piece."""

    def __init__(self) -> None:
        self._bytes = 0
        self._digests = bytearray()
        self._open = xxhash.xxh3_128()

    def update(self, data: memoryview) -> None:
        while data:
            room = BLOCK - self._bytes % BLOCK
            part, data = data[:room], data[room:]
            self._open.update(part)
            self._bytes += len(part)
            if len(part) == room:
                self._digests += self._open.digest()
                self._open = xxhash.xxh3_128()

    def blocks(self) -> Blocks:
        """Of all that was fed."""
        last = self._open.digest() if self._bytes % BLOCK else b""
        return Blocks(self._bytes, bytes(self._digests) + last)


def blocks_of(path: Path) -> Blocks:
    """Of what `path` holds now."""
    hasher = Hasher()
    buffer = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            hasher.update(buffer[:count])
    return hasher.blocks()


def read_pieces(path: Path, expected: Blocks, pieces: Iterable[Piece]) -> None:
    """Fill `pieces`, which do not overlap, reading the blocks that they lie in and no others.

    Raises:
        Damaged: the file has another size, or one of these blocks another digest.
        OSError: it is gone, or cannot be read.
    """
    scratch = memoryview(bytearray(BLOCK))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = os.fstat(descriptor).st_size
        if found != expected.size:
            raise Damaged(f"{path.name} has {found} bytes, expected {expected.size}")
        for block, wanted in _by_block(pieces):
            start = block * BLOCK
            buffers = _line_up(wanted, start, min(BLOCK, expected.size - start), scratch)
            _read(descriptor, buffers, start)
            hasher = xxhash.xxh3_128()
            for buffer in buffers:
                hasher.update(buffer)
            if hasher.digest() != expected.digests[block * DIGEST : (block + 1) * DIGEST]:
                raise Damaged(f"the hash of {path.name} does not agree")
    finally:
        os.close(descriptor)


def _by_block(pieces: Iterable[Piece]) -> Iterator[tuple[int, list[Piece]]]:
    """Pieces cut at the borders of blocks, block by block."""
    block, wanted = -1, list[Piece]()
    for at, memory in sorted(pieces, key=lambda piece: piece[0]):
        while memory:
            if at // BLOCK != block:
                if wanted:
                    yield block, wanted
                block, wanted = at // BLOCK, []
            room = BLOCK - at % BLOCK
            wanted.append((at, memory[:room]))
            memory = memory[room:]
            at += room
    if wanted:
        yield block, wanted


def _line_up(wanted: list[Piece], start: int, size: int, scratch: memoryview) -> list[memoryview]:
    """Memory for a whole block: that of the pieces, and `scratch` for what nobody wants."""
    buffers, filled = [], 0
    for at, memory in wanted:
        if at - start > filled:
            buffers.append(scratch[filled : at - start])
        buffers.append(memory)
        filled = at - start + len(memory)
    return [*buffers, scratch[filled:size]] if filled < size else buffers


def _read(descriptor: int, buffers: list[memoryview], at: int) -> None:
    """Fill all of them, in order, with what stands from `at` on."""
    left = list(buffers)
    while left:
        count = os.preadv(descriptor, left[:_MOST_BUFFERS], at)
        if count == 0:
            raise Damaged("a file ended while it was read")
        at += count
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if left:
            left[0] = left[0][count:]

"""The members of a tar, found by hopping from header to header; their content is not read.

Understands ustar, GNU long names, pax headers and sizes in base 256 (POSIX.1-2001, and the GNU tar
manual, "Basic Tar Format"). Nothing is ever extracted, so a name may say what it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pipeline.errors import DataError, UserError

BLOCK = 512
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip --keep {}"),
    b"BZh": ("bzip2", "bunzip2 --keep {}"),
    b"\xfd7zXZ\x00": ("xz", "unxz --keep {}"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd {}"),
}

ReadAt = Callable[[int, int], bytes]
"""(offset, length) → the bytes there; fewer at the end of the file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar: `header` is where its first header starts, `offset` where its content does."""

    name: str
    header: int
    offset: int
    size: int


def members(shard: str, size: int, read_at: ReadAt) -> Iterator[Member]:
    """The regular files of a tar of `size` bytes, in order.

    Raises:
        UserError: the tar is compressed.
        DataError: it is damaged, or its end is missing.
    """
    _refuse_compressed(shard, read_at(0, 6))
    position, start, last = 0, None, "none"
    override: dict[str, str] = {}
    while True:
        header = read_at(position, BLOCK)
        if len(header) < BLOCK:
            raise truncated(shard, last, f"it ends at byte {size} without the closing block of zeros")
        if not header.strip(b"\0"):
            return
        kind = _check(shard, position, header)
        length = int(override.get("size", _number(header[124:136])))
        content = position + BLOCK
        if content + length > size:
            name = override.get("path", _name(header))
            raise truncated(shard, name, f"{name!r} needs {content + length} bytes, the file has {size}")
        start = position if start is None else start
        if kind in b"Lx":
            text = read_at(content, length)
            override |= {"path": _text(text.rstrip(b"\0"))} if kind == ord("L") else _pax(shard, text)
        elif kind not in b"Kg":
            if kind in b"0\0" + b"7":
                last = override.get("path", _name(header))
                yield Member(last, start, content, length)
            override, start = {}, None
        position = content + -(-length // BLOCK) * BLOCK


def truncated(shard: str, key: str, found: str) -> DataError:
    return DataError(
        f"{shard} is cut off: {found} (last member {key!r})",
        "a whole tar, which ends in blocks of zeros",
        "copy or write this shard again",
    )


def _refuse_compressed(shard: str, start: bytes) -> None:
    for magic, (name, command) in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{shard} is compressed with {name}",
                "a plain tar, in which a sample can be read without what comes before it",
                f"unpack it first: {command.format(shard)}",
            )


def _check(shard: str, position: int, header: bytes) -> int:
    """The member's type, after the header's own checksum was found right."""
    try:
        expected = _number(header[148:156])
    except ValueError:
        expected = -1
    if sum(header) - sum(header[148:156]) + 8 * 32 != expected:
        raise DataError(
            f"{shard} has no valid tar header at byte {position}",
            "a tar whose headers agree with their checksums",
            "copy or write this shard again",
        )
    return header[156]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, big-endian, for sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _pax(shard: str, text: bytes) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" that concern us."""
    found: dict[str, str] = {}
    while text:
        length, _, rest = text.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            raise DataError(
                f"{shard} has a damaged pax header", "records LENGTH KEY=VALUE", "write this shard again"
            )
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        text = text[int(length) :]
    return found

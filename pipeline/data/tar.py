"""The members of a tar, found by hopping from header to header; their content is not read.

Understands ustar, GNU long names, pax headers and sizes in base 256 (POSIX.1-2001, and the GNU tar
manual, "Basic Tar Format"). Nothing is ever extracted, so a name may say what it likes.

Whoever wants what is whole in a damaged tar takes the faults as they are found; the hop then goes on at
the next block that is a header by its own checksum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.errors import DataError, UserError

BLOCK = 512
_SEARCHED = 2**20  # bytes read at once where blocks are looked through
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


def refuse(fault: DataError) -> None:
    """What becomes of a fault where nobody asks for the rest."""
    raise fault


def members(
    shard: str, size: int, read_at: ReadAt, told: Callable[[DataError], None] = refuse
) -> Iterator[Member]:
    """The regular files of a tar of `size` bytes, in order.

    Args:
        told: called with each fault. If it returns, the files before and behind the damage are given.

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
            told(_truncated(shard, last, f"it ends at byte {size} without the closing block of zeros"))
            return
        try:
            if not header.strip(b"\0"):
                _refuse_more(shard, last, position, size, read_at)
                return
            kind = _check(shard, last, position, header)
            length = _length(shard, last, position, header, override)
            content = position + BLOCK
            if content + length > size:
                name = override.get("path", _name(header))
                told(_truncated(shard, name, f"{name!r} needs {content + length} bytes, the file has {size}"))
                return
            start = position if start is None else start
            if kind in b"Lx":
                text = read_at(content, length)
                override |= (
                    {"path": _text(text.rstrip(b"\0"))} if kind == ord("L") else _pax(shard, text, content)
                )
            elif kind not in b"Kg":
                if kind in b"0\0" + b"7":
                    last = override.get("path", _name(header))
                    yield Member(last, start, content, length)
                override, start = {}, None
            position = content + -(-length // BLOCK) * BLOCK
        except _Damaged as damaged:
            told(damaged.fault)
            found = _next_header(damaged.at, size, read_at)
            if found is None:
                return
            position, override, start = found, {}, None


class _Damaged(Exception):
    """A fault behind which more may be whole; `at` is the block where the search for it begins."""

    def __init__(self, fault: DataError, at: int) -> None:
        super().__init__(fault, at)
        self.fault, self.at = fault, at


def _truncated(shard: str, key: str, found: str) -> DataError:
    return DataError(
        f"{shard} is cut off: {found} (last member {key!r})",
        "a whole tar, which ends in blocks of zeros",
        "copy or write this shard again",
    )


def _refuse_more(shard: str, last: str, end: int, size: int, read_at: ReadAt) -> None:
    """Behind the closing block there must be zeros alone: whatever else is there, no reader would find it."""
    for start in range(end, size, _SEARCHED):
        data = read_at(start, _SEARCHED)
        more = len(data) - len(data.lstrip(b"\0"))
        if more < len(data):
            fault = DataError(
                f"{shard} goes on at byte {start + more}, behind its closing block at {end} "
                f"(last member {last!r})",
                "a tar that ends in blocks of zeros: other readers stop at the first of them",
                "copy or write this shard again; tars are put together by `tar --concatenate`",
            )
            raise _Damaged(fault, (start + more) // BLOCK * BLOCK)


def _next_header(start: int, size: int, read_at: ReadAt) -> int | None:
    """Where the next block from `start` lies that says it is a header and has the checksum of one."""
    for first in range(start, size, _SEARCHED):
        data = read_at(first, _SEARCHED)
        for place in range(0, len(data) - BLOCK + 1, BLOCK):
            if data[place + 257 : place + 262] == b"ustar" and _valid(data[place : place + BLOCK]):
                return first + place
    return None


def _refuse_compressed(shard: str, start: bytes) -> None:
    for magic, (name, command) in _COMPRESSED.items():
        if start.startswith(magic):
            raise UserError(
                f"{shard} is compressed with {name}",
                "a plain tar, in which a sample can be read without what comes before it",
                f"unpack it first: {command.format(shard)}",
            )


def _check(shard: str, last: str, position: int, header: bytes) -> int:
    """The member's type, after the header's own checksum was found right."""
    if not _valid(header):
        raise _no_header(shard, last, position)
    return header[156]


def _valid(header: bytes) -> bool:
    try:
        return sum(header) - sum(header[148:156]) + 8 * 32 == _number(header[148:156])
    except ValueError:
        return False


def _length(shard: str, last: str, position: int, header: bytes, override: Mapping[str, str]) -> int:
    """Bytes of the member's content."""
    try:
        length = int(override.get("size", _number(header[124:136])))
    except ValueError:
        length = -1
    if length < 0:
        raise _no_header(shard, last, position)
    return length


def _no_header(shard: str, last: str, position: int) -> _Damaged:
    fault = DataError(
        f"{shard} has no valid tar header at byte {position} (last member {last!r})",
        "a tar whose headers agree with their checksums",
        "copy or write this shard again",
    )
    return _Damaged(fault, position + BLOCK)


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


def _pax(shard: str, text: bytes, at: int) -> dict[str, str]:
    """The records "LENGTH KEY=VALUE\\n" that concern us; they lie at byte `at`."""
    found: dict[str, str] = {}
    while text:
        length, _, rest = text.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            fault = DataError(
                f"{shard} has a damaged pax header at byte {at}",
                "records LENGTH KEY=VALUE",
                "copy or write this shard again",
            )
            raise _Damaged(fault, at // BLOCK * BLOCK)
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        text = text[int(length) :]
    return found

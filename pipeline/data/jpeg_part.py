"""A part of a JPEG, without decoding the rest: a smaller JPEG is cut out of it, byte by byte.

    SOI  tables  SOF (height, width)  SOS  MCU ▸RST0▸ MCU ▸RST1▸ MCU ▸RST2▸ …  EOI

Entropy-coded data can only be read from its start, or from behind a restart marker (RST0 … RST7, in turn).
Where markers cut each row of MCUs evenly, as our own writer sets them, the pieces that show what is wanted
are put together. Of other JPEGs only the rows below are left out, by another height in the header: there the
decoder stops. The pixels are those of the whole image: rows and columns that upsampling of colour looks at
are kept (ITU-T T.81, B and F.1).

Cut are baseline JPEGs of one scan that end as they should; all others are left whole.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_SOF, _LATER_SOF = (0xC0, 0xC1), frozenset({*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DRI, _SOS, _EOI = 0xDD, 0xDA, b"\xff\xd9"
_CONTEXT = 4  # pixels around those wanted from which upsampling of colour may take something

Box = tuple[int, int, int, int]
"""top, left, height, width"""


class Part(NamedTuple):
    """A JPEG of the pixels from row `top` and column `left` on. `exact`: nothing else is in it; otherwise the
    data of more rows follows, of which a strict decoder complains."""

    data: bytearray
    top: int
    left: int
    height: int
    width: int
    exact: bool


class _Header(NamedTuple):
    """Where the height stands and the data of the scan begins, bytes; height and width of an MCU, MCUs in a
    row, and in a restart interval (0: none)."""

    height_at: int
    height: int
    width: int
    scan: int
    high: int
    wide: int
    mcus: int
    interval: int


def cut_part(data: bytes, box: Box, by: int = 1) -> Part | None:
    """A JPEG with at least the pixels in a box of another; None: it must be decoded whole.

    Args:
        by: at which fraction it will be decoded: 1, 2, 4 or 8; the part begins at multiples of it.
    """
    header = _read_header(data)
    if header is None or not data.endswith(_EOI):
        return None
    part = _between_restarts(data, header, box, by)
    if part is not None:
        return part
    end = -(-(box[0] + box[2] + _CONTEXT * by) // header.high) * header.high
    if end >= header.height:
        return None
    shorter = bytearray(data)
    struct.pack_into(">H", shorter, header.height_at, end)
    return Part(shorter, 0, 0, end, header.width, False)


def _between_restarts(data: bytes, header: _Header, box: Box, by: int) -> Part | None:
    """The box between restart markers; None: they do not cut rows evenly, or are not all there."""
    if not header.interval or header.mcus % header.interval:
        return None
    columns = header.mcus // header.interval
    count = columns * -(-header.height // header.high)
    source = np.frombuffer(data, dtype=np.uint8)
    marked = np.flatnonzero(source[header.scan : -2] == 0xFF)
    marked += header.scan
    markers = marked[source[marked + 1] & 0xF8 == 0xD0]
    if len(markers) != count - 1 or ((source[markers + 1] ^ _numbers(count - 1)) & 7).any():
        return None
    row, rows, top, height = _units(box[0], box[2], header.high, header.height, by)
    column, wide, left, width = _units(box[1], box[3], header.wide * header.interval, header.width, by)
    # Where pieces end in `data`: the last before row 0, then those of each row.
    ends = [header.scan - 2, *markers.tolist(), len(data) - 2]
    view, pieces, places, place = memoryview(data), [], [], header.scan
    for first in range(row * columns + column, (row + rows) * columns, columns):
        start, *stops = ends[first : first + wide + 1]
        pieces.append(view[start + 2 : stops[-1] + 2])
        shift = place - start - 1  # to the second byte of the marker behind a piece
        places += [stop + shift for stop in stops]
        place += stops[-1] - start
    # One copy of bytes that have just been read: several take as long as what is found out here.
    part = bytearray().join([view[: header.scan], *pieces])
    struct.pack_into(">HH", part, header.height_at, height, width)
    np.frombuffer(part, dtype=np.uint8)[places] = _numbers(len(places)) & 7 | 0xD0
    part[-2:] = _EOI
    return Part(part, top, left, height, width, True)


@lru_cache(maxsize=64)
def _numbers(count: int) -> NDArray[np.uint8]:
    """0, 1, 2, …, and again from 0 after 255."""
    return np.arange(count).astype(np.uint8)


def _units(start: int, length: int, unit: int, whole: int, by: int) -> tuple[int, int, int, int]:
    """Along one side: the first unit and how many hold a stretch and what is around it; in pixels too."""
    first = max(0, start - _CONTEXT * by) // unit
    count = -(-min(start + length + _CONTEXT * by, whole) // unit) - first
    return first, count, first * unit, min(count * unit, whole - first * unit)


def _read_header(data: bytes) -> _Header | None:
    """None: not a baseline JPEG of one scan."""
    place, interval, frame = 2, 0, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in _SOF:
            frame = place + 4
        elif marker in _LATER_SOF:
            return None
        elif marker == _DRI:
            interval = int.from_bytes(data[place + 4 : place + 6], "big")
        elif marker == _SOS:
            if frame is None or data[place + 4 : place + 5] != data[frame + 5 : frame + 6]:
                return None  # a scan for each component
            return _frame(data, frame, place + 2 + length, interval)
        place += 2 + length
    return None


def _frame(data: bytes, at: int, scan: int, interval: int) -> _Header | None:
    """From the frame header whose content begins at `at`: precision, height, width, components."""
    height, width, components = struct.unpack_from(">HHB", data, at + 1)
    factors = [data[at + 7 + 3 * number] for number in range(components)]
    if (
        not height
        or not width
        or not factors
        or any(not factor >> 4 or not factor & 15 for factor in factors)
    ):
        return None
    # The scan of a single component is not interleaved: its MCU is one block, whatever the factors say.
    wide, high = (1, 1) if components == 1 else (max(f >> 4 for f in factors), max(f & 15 for f in factors))
    return _Header(at + 1, height, width, scan, 8 * high, 8 * wide, -(-width // (8 * wide)), interval)

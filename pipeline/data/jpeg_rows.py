"""Some rows of a JPEG, without decoding the others: a shorter JPEG is cut out of it, byte by byte.

    SOI  tables  SOF (height, width)  SOS  MCU row 0 ▸RST0▸ MCU row 1 ▸RST1▸ MCU row 2 …  EOI

Entropy-coded data can only be read from its start, or from behind a restart marker (RST0 … RST7, in turn).
So rows below those that are wanted are left out by another height in the header: there the decoder stops.
Rows above can be left out where restart markers stand between rows, as our own writer sets them. The pixels
are those of the whole image: rows that upsampling of colour looks at are kept (ITU-T T.81, B and F.1).

Cut are baseline JPEGs of one scan that end as they should; all others are left whole.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import NamedTuple

_SOF, _LATER_SOF = (0xC0, 0xC1), frozenset({*range(0xC2, 0xD0)} - {0xC4, 0xC8, 0xCC})
_DRI, _SOS, _EOI = 0xDD, 0xDA, b"\xff\xd9"
_RESTART = re.compile(b"\xff[\xd0-\xd7]")
_CONTEXT = 4  # rows around those wanted from which upsampling of colour may take something


class Rows(NamedTuple):
    """A JPEG of the rows from `first` on. `exact`: nothing but these rows is in it; otherwise the data of
    more rows follows, of which a strict decoder complains."""

    data: bytearray
    first: int
    exact: bool


class _Header(NamedTuple):
    """Where the height stands and the data of the scan begins, bytes; the rows of an MCU, MCUs in a row, and
    in a restart interval (0: none)."""

    height_at: int
    height: int
    scan: int
    mcu_rows: int
    mcus: int
    interval: int


def cut_rows(data: bytes, top: int, bottom: int, by: int = 1) -> Rows | None:
    """A JPEG with at least the rows `top` … `bottom`-1 of another; None: it must be decoded whole.

    Args:
        by: at which fraction it will be decoded: 1, 2, 4 or 8; `first` is a multiple of it.
    """
    header = _read_header(data)
    if header is None or not data.endswith(_EOI):
        return None
    unit = header.mcu_rows
    first = max(0, top - _CONTEXT * by) // unit * unit
    end = min(-(-(bottom + _CONTEXT * by) // unit) * unit, header.height)
    cut = _between_restarts(data, header, first, end)
    if cut is not None or end >= header.height:
        return cut
    shorter = bytearray(data)
    struct.pack_into(">H", shorter, header.height_at, end)
    return Rows(shorter, 0, False)


def _between_restarts(data: bytes, header: _Header, first: int, end: int) -> Rows | None:
    """The rows between restart markers; None: they do not stand between rows, or not where they should."""
    if not header.interval or header.interval % header.mcus:
        return None
    unit = header.interval // header.mcus * header.mcu_rows
    begin, stop, intervals = first // unit, -(-end // unit), -(-header.height // unit)
    markers = [
        match.start() for match in islice(_RESTART.finditer(data, header.scan), min(stop, intervals - 1))
    ]
    if len(markers) < min(stop, intervals - 1) or any(
        data[marker + 1] != 0xD0 + number % 8 for number, marker in enumerate(markers)
    ):
        return None
    start = markers[begin - 1] + 2 if begin else header.scan
    scan = memoryview(data)[start : markers[stop - 1] if stop < intervals else len(data) - 2]
    # One copy of bytes that have just been read: several take as long as what is found out here.
    cut = bytearray(header.scan + len(scan) + 2)
    cut[: header.scan] = memoryview(data)[: header.scan]
    struct.pack_into(">H", cut, header.height_at, min(stop * unit, header.height) - begin * unit)
    cut[header.scan : -2] = scan
    for number, marker in enumerate(markers[begin : stop - 1]):
        cut[marker + 1 - start + header.scan] = 0xD0 + number % 8
    cut[-2:] = _EOI
    return Rows(cut, begin * unit, True)


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
    return _Header(at + 1, height, scan, 8 * high, -(-width // (8 * wide)), interval)

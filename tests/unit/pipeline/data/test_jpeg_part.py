from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import Decoded, Wanted, decode, decode_part
from pipeline.data.jpeg_part import cut_part

HEIGHT, WIDTH = 203, 177
COARSE = np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
NOISE = np.random.default_rng(1).integers(-20, 21, (HEIGHT, WIDTH, 3))
PHOTO = np.clip(np.array(Image.fromarray(COARSE).resize((WIDTH, HEIGHT))) + NOISE, 0, 255).astype(np.uint8)

GREY = {"grey": True}
KINDS: dict[str, dict] = {
    "4:2:0": {"subsampling": "4:2:0"},
    "4:2:2": {"subsampling": "4:2:2"},
    "4:4:4": {"subsampling": "4:4:4"},
    "grey": GREY,
    "restarts": {"subsampling": "4:2:0", "restart_marker_rows": 1},
    "restarts 4:4:4": {"subsampling": "4:4:4", "restart_marker_rows": 1},
    "restarts 4:2:2": {"subsampling": "4:2:2", "restart_marker_rows": 1},
    "each MCU": {"subsampling": "4:2:0", "restart_marker_blocks": 1},
    "each MCU 4:2:2": {"subsampling": "4:2:2", "restart_marker_blocks": 1},
    "each MCU 4:4:4": {"subsampling": "4:4:4", "restart_marker_blocks": 1},
    "a third of a row": {"subsampling": "4:2:0", "restart_marker_blocks": 4},
    "a restart every three rows": {"subsampling": "4:2:0", "restart_marker_rows": 3},
    "a restart across rows": {"subsampling": "4:2:0", "restart_marker_blocks": 5},
    "grey with restarts": GREY | {"restart_marker_rows": 1},
    "grey, each block": GREY | {"restart_marker_blocks": 1},
    "optimised": {"optimize": True, "restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "progressive with restarts": {"progressive": True, "restart_marker_rows": 1},
}


def _jpeg(kind: str) -> bytes:
    options = dict(KINDS[kind])
    image = Image.fromarray(PHOTO)
    buffer = io.BytesIO()
    (image.convert("L") if options.pop("grey", False) else image).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


JPEGS = {kind: _jpeg(kind) for kind in KINDS}


def _part(data: bytes, by: int, *box: int) -> Decoded:
    found = decode_part(data, lambda height, width: Wanted(by, box))
    assert isinstance(found, Decoded), found
    return found


def _inside(start: int, length: int, by: int, first: int) -> slice:
    """Of a decoded part the pixels that show this stretch."""
    return slice(start // by - first, -(-(start + length) // by) - first)


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_has_the_pixels_of_the_whole(kind: str, by: int) -> None:
    whole = _part(JPEGS[kind], by, 0, 0, HEIGHT, WIDTH)
    assert (whole.top, whole.left, *whole.pixels.shape[:2]) == (0, 0, -(-HEIGHT // by), -(-WIDTH // by))

    @settings(max_examples=60, deadline=None)
    @given(
        *(st.integers(0, side - 1) for side in (HEIGHT, WIDTH)), st.integers(1, HEIGHT), st.integers(1, WIDTH)
    )
    def check(top: int, left: int, height: int, width: int) -> None:
        height, width = min(height, HEIGHT - top), min(width, WIDTH - left)
        found = _part(JPEGS[kind], by, top, left, height, width)
        assert found.shape == (HEIGHT, WIDTH)
        rows, columns = _inside(top, height, by, found.top), _inside(left, width, by, found.left)
        assert 0 <= rows.start < rows.stop <= found.pixels.shape[0]
        assert 0 <= columns.start < columns.stop <= found.pixels.shape[1]
        expected = whole.pixels[_inside(top, height, by, 0), _inside(left, width, by, 0)]
        assert np.array_equal(found.pixels[rows, columns], expected)

    check()


@pytest.mark.parametrize(
    "kind, top, left, height, width",
    [
        ("4:2:0", 0, 0, 128, WIDTH),  # 112 ends a row of MCUs: what is below may change the colour there
        ("4:4:4", 0, 0, 120, WIDTH),
        ("grey", 0, 0, 120, WIDTH),
        ("restarts", 80, 0, 48, WIDTH),
        ("restarts 4:4:4", 88, 0, 32, WIDTH),
        ("grey with restarts", 88, 0, 32, WIDTH),
        ("each MCU", 80, 48, 48, 48),
        ("each MCU 4:4:4", 88, 56, 32, 32),
        ("grey, each block", 88, 56, 32, 32),
        ("a third of a row", 80, 0, 48, 128),
        ("a restart every three rows", 0, 0, 128, WIDTH),
        ("a restart across rows", 0, 0, 128, WIDTH),
        ("progressive", 0, 0, HEIGHT, WIDTH),
        ("progressive with restarts", 0, 0, HEIGHT, WIDTH),
    ],
)
def test_what_is_left_out(kind: str, top: int, left: int, height: int, width: int) -> None:
    found = _part(JPEGS[kind], 1, 96, 64, 16, 16)
    assert (found.top, found.left, *found.pixels.shape[:2]) == (top, left, height, width)


def test_parts_are_jpegs_that_anybody_reads() -> None:
    for kind in ("restarts", "restarts 4:4:4", "grey with restarts", "each MCU", "a third of a row"):
        part = cut_part(JPEGS[kind], (100, 64, 60, 60))
        assert part is not None
        assert part.exact
        assert len(part.data) < 0.6 * len(JPEGS[kind])
        with Image.open(io.BytesIO(part.data)) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[:2] == (part.height, part.width)
        rows, columns = _inside(100, 60, 1, part.top), _inside(64, 60, 1, part.left)
        assert np.array_equal(pixels[rows, columns], decode(JPEGS[kind])[100:160, 64:124])


def test_what_does_not_end_well_is_left_whole() -> None:
    data, box = JPEGS["4:2:0"], (0, 0, 16, 16)
    for damaged in (data[:-2], data[: len(data) // 2], data + b"\0", data[:30], b"\xff\xd8\xff", b"\xff\xd8"):
        assert cut_part(damaged, box) is None
    assert decode_part(data[: len(data) // 2], lambda height, width: Wanted(1, box)) == "truncated"
    # Restart markers of which one is gone, or two of one number: pieces cannot be told from each other.
    for kind in ("restarts", "each MCU"):
        for wrong in (b"\xd3\xd3", b"\xff\xd5"):
            part = cut_part(JPEGS[kind].replace(b"\xff\xd3", wrong, 1), (96, 64, 16, 16))
            assert part is not None
            assert not part.exact


@pytest.mark.parametrize("kind", ["4:2:0", "restarts", "each MCU", "optimised"])
def test_damage_never_raises_and_rows_above_it_are_right(kind: str) -> None:
    whole = decode(JPEGS[kind])
    random = np.random.default_rng(2)
    data = np.frombuffer(JPEGS[kind], dtype=np.uint8)
    for _ in range(80):
        damaged = data.copy()
        places = random.integers(0, len(data), 3)
        damaged[places] = random.integers(0, 256, 3)
        box = (int(random.integers(0, HEIGHT - 20)), int(random.integers(0, WIDTH - 20)), 20, 20)
        found = decode_part(damaged.tobytes(), lambda height, width, box=box: Wanted(1, box))
        assert isinstance(found, str | Decoded)
    damaged = data.copy()
    damaged[int(0.9 * len(data)) : int(0.9 * len(data)) + 40] ^= 0x5A
    found = _part(damaged.tobytes(), 1, 0, 0, 80, WIDTH)
    assert np.array_equal(found.pixels[:80], whole[:80])

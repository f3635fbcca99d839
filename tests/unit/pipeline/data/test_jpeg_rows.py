from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.decode import Decoded, Wanted, decode, decode_part
from pipeline.data.jpeg_rows import cut_rows

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
    "a restart every three rows": {"subsampling": "4:2:0", "restart_marker_rows": 3},
    "a restart within rows": {"subsampling": "4:2:0", "restart_marker_blocks": 5},
    "grey with restarts": GREY | {"restart_marker_rows": 1},
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


def _part(data: bytes, by: int, top: int, bottom: int) -> Decoded:
    found = decode_part(data, lambda height, width: Wanted(by, top, bottom))
    assert isinstance(found, Decoded), found
    return found


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_have_the_pixels_of_the_whole(kind: str, by: int) -> None:
    whole = _part(JPEGS[kind], by, 0, HEIGHT)
    assert (whole.first, len(whole.pixels)) == (0, -(-HEIGHT // by))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, HEIGHT - 1), st.integers(1, HEIGHT))
    def check(top: int, rows: int) -> None:
        bottom = min(top + rows, HEIGHT)
        found = _part(JPEGS[kind], by, top, bottom)
        assert found.shape == (HEIGHT, WIDTH)
        wanted = slice(top // by, -(-bottom // by))
        inside = slice(wanted.start - found.first, wanted.stop - found.first)
        assert 0 <= inside.start < inside.stop <= len(found.pixels)
        assert np.array_equal(found.pixels[inside], whole.pixels[wanted])

    check()


@pytest.mark.parametrize(
    "kind, first, rows",
    [
        ("4:2:0", 0, 128),  # 112 ends a row of MCUs: what is below may change the colour there
        ("4:4:4", 0, 120),
        ("grey", 0, 120),
        ("restarts", 80, 48),
        ("restarts 4:4:4", 88, 32),
        ("grey with restarts", 88, 32),
        ("a restart every three rows", 48, 96),
        ("a restart within rows", 0, 128),
        ("progressive", 0, HEIGHT),
        ("progressive with restarts", 0, HEIGHT),
    ],
)
def test_what_is_left_out(kind: str, first: int, rows: int) -> None:
    found = _part(JPEGS[kind], 1, 96, 112)
    assert (found.first, len(found.pixels)) == (first, rows)


def test_pieces_are_jpegs_that_anybody_reads() -> None:
    for kind in ("restarts", "restarts 4:4:4", "grey with restarts"):
        cut = cut_rows(JPEGS[kind], 100, 160)
        assert cut is not None
        assert cut.exact
        assert len(cut.data) < 0.6 * len(JPEGS[kind])
        with Image.open(io.BytesIO(cut.data)) as image:
            pixels = np.asarray(image.convert("RGB"))
        rows = slice(104 - cut.first, 156 - cut.first)  # without those next to the cuts
        assert np.array_equal(pixels[rows], decode(JPEGS[kind])[104:156])


def test_what_does_not_end_well_is_left_whole() -> None:
    data = JPEGS["4:2:0"]
    for damaged in (data[:-2], data[: len(data) // 2], data + b"\0", data[:30], b"\xff\xd8\xff", b"\xff\xd8"):
        assert cut_rows(damaged, 0, 16) is None
    assert decode_part(data[: len(data) // 2], lambda height, width: Wanted(1, 0, 16)) == "truncated"
    # Restart markers of which one is gone: rows above cannot be told from each other.
    data = JPEGS["restarts"]
    gone = data.replace(b"\xff\xd3", b"\xd3\xd3", 1)
    cut = cut_rows(gone, 96, 112)
    assert cut is None or not cut.exact


@pytest.mark.parametrize("kind", ["4:2:0", "restarts", "optimised"])
def test_damage_never_raises_and_rows_above_it_are_right(kind: str) -> None:
    whole = decode(JPEGS[kind])
    random = np.random.default_rng(2)
    data = np.frombuffer(JPEGS[kind], dtype=np.uint8)
    for _ in range(80):
        damaged = data.copy()
        places = random.integers(0, len(data), 3)
        damaged[places] = random.integers(0, 256, 3)
        top = int(random.integers(0, HEIGHT - 20))
        found = decode_part(damaged.tobytes(), lambda height, width, top=top: Wanted(1, top, top + 20))
        assert isinstance(found, str | Decoded)
    damaged = data.copy()
    damaged[int(0.9 * len(data)) : int(0.9 * len(data)) + 40] ^= 0x5A
    found = _part(damaged.tobytes(), 1, 0, 80)
    assert np.array_equal(found.pixels[:80], whole[:80])

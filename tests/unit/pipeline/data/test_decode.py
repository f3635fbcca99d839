from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import MAX_PIXELS, decode

RGB = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _pixels(data: bytes) -> np.ndarray:
    result = decode(data)
    assert isinstance(result, np.ndarray), result
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    return result


@pytest.mark.parametrize("options", [{}, {"subsampling": 2}, {"progressive": True}, {"quality": 30}])
def test_jpeg_has_the_pixels_of_pillow(options: dict[str, object]) -> None:
    data = _save(Image.fromarray(RGB), "JPEG", **options)
    assert np.array_equal(_pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_jpeg_becomes_rgb() -> None:
    data = _save(Image.fromarray(RGB[:, :, 0]), "JPEG", quality=95)
    grey = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(_pixels(data), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    "kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {}), ("PPM", {})]
)
def test_lossless_formats_are_exact(kind: str, options: dict[str, object]) -> None:
    assert np.array_equal(_pixels(_save(Image.fromarray(RGB), kind, **options)), RGB)


def test_cmyk_jpeg_has_the_pixels_of_pillow() -> None:
    data = _save(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95)
    assert np.array_equal(_pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_palette_and_alpha() -> None:
    flat = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(flat.convert("RGB"))
    assert np.array_equal(_pixels(_save(flat, "PNG")), expected)
    assert np.array_equal(_pixels(_save(flat, "PNG", transparency=b"\x00\x80" * 8)), expected)
    clear = Image.fromarray(np.dstack([RGB, RGB[:, :, 0]]))
    assert np.array_equal(_pixels(_save(clear, "PNG")), RGB)
    assert _pixels(_save(Image.fromarray(RGB).convert("1"), "PNG")).max() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = (RGB[:, :, 0].astype(np.uint16) << 8) | 0x7F
    data = _save(Image.fromarray(deep), "PNG")
    assert np.array_equal(_pixels(data)[:, :, 1], RGB[:, :, 0])


def test_animated_webp_gives_its_first_frame() -> None:
    second = Image.fromarray(255 - RGB)
    data = _save(Image.fromarray(RGB), "WEBP", save_all=True, append_images=[second], lossless=True)
    assert np.array_equal(_pixels(data), RGB)


def _png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_bombs_are_refused_by_their_header() -> None:
    assert decode(_png_header(20_000, 20_000)) == "too many pixels"
    jpeg = bytearray(_save(Image.fromarray(RGB), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 20_000, 20_000)
    assert decode(bytes(jpeg)) == "too many pixels"
    for width, height in (
        (10_000, 10_000),
        (60_000, 60_000),
    ):  # Pillow warns of the first, refuses the second
        assert width * height > MAX_PIXELS
        frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\x00\x00;"
        assert decode(b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame) == "too many pixels"


def test_reasons() -> None:
    jpeg, png = _save(Image.fromarray(RGB), "JPEG"), _save(Image.fromarray(RGB), "PNG")
    assert decode(b"") == "empty"
    assert decode(b"<html>not found</html>") == "not an image"
    assert decode(jpeg[: len(jpeg) // 2]) == "truncated"
    assert isinstance(decode(png[: len(png) // 2]), str)
    assert isinstance(decode(jpeg[:20]), str)
    assert decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"


def test_flipped_bytes_never_raise() -> None:
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        data = np.frombuffer(_save(Image.fromarray(RGB), kind), dtype=np.uint8)
        for _ in range(60):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 3)] = random.integers(0, 256, 3)
            assert isinstance(decode(damaged.tobytes()), str | np.ndarray)

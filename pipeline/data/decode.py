"""Bytes → pixels, or a reason why not.

JPEG of 1 or 3 components goes to simplejpeg, which gives Pillow's pixels 1.4 times as fast; everything
else, and what simplejpeg is too strict for, goes to Pillow. A truncated file is unreadable to both. A JPEG
can be decoded at a half, a quarter or an eighth of its size from fewer of its DCT coefficients: 2.5 to 4
times as fast for photos of megapixels, and within a level of resizing the whole, on average. What nobody
wants is left out of a JPEG where that is possible (jpeg_part.py); the rest has the same pixels.
Transparency is dropped and orientation tags are ignored, as torchvision's loader does.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data.jpeg_part import Box, Part, cut_part

_MOST = 0.9  # share of an image's pixels: where more are wanted, cutting them out costs as much
MAX_PIXELS = 89_478_485  # Pillow's own limit for its warning: 256 MiB of RGB
# Formats that Pillow reads by itself; EPS, for one, would start another program.
_FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "MPO",
    "JPEG2000",
    "AVIF",
    "TGA",
    "ICO",
    "DDS",
)

Pixels = NDArray[np.uint8]


@cache
def _formats() -> list[str]:
    """Those of `_FORMATS` that this build of Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


class Wanted(NamedTuple):
    """What of an image is to be decoded: the pixels in a box of it at least, at 1 / `by` of its size."""

    by: int
    box: Box


class Decoded(NamedTuple):
    """pixels: (rows, columns, 3) RGB of an image of `shape` (H, W): of the ceil(H / by) by ceil(W / by)
    pixels that it has at this size those from row `top` and column `left` on."""

    pixels: Pixels
    shape: tuple[int, int]
    by: int = 1
    top: int = 0
    left: int = 0


def decode(data: bytes) -> Pixels | str:
    """(H, W, 3) RGB, C-contiguous; or the reason, in a few words that hold no data of the image."""
    decoded = decode_part(data, whole)
    return decoded if isinstance(decoded, str) else decoded.pixels


def whole(height: int, width: int) -> Wanted:
    return Wanted(1, (0, 0, height, width))


def decode_part(data: bytes, wanted: Callable[[int, int], Wanted]) -> Decoded | str:
    """The same, at a fraction of its size and without what is not wanted, where that is cheaper.

    Args:
        wanted: of (height, width) in a JPEG's header. Images of other formats, and those that go to Pillow,
            come whole.
    """
    if not data:
        return "empty"
    if data[:2] == b"\xff\xd8":
        decoded = _decode_jpeg(data, wanted)
        if decoded is not None:
            return decoded
    size = png_size(data)
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        return "too many pixels"
    pixels = _decode_pillow(data)
    return pixels if isinstance(pixels, str) else Decoded(pixels, pixels.shape[:2])


def _decode_jpeg(data: bytes, wanted: Callable[[int, int], Wanted]) -> Decoded | str | None:
    """None: try Pillow."""
    try:
        height, width, colour, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return "too many pixels"
        if colour not in ("YCbCr", "Gray", "RGB"):
            return None
        by, box = wanted(height, width)
        part = cut_part(data, box, by) if box[2] * box[3] < _MOST * height * width else None
        pixels = None if part is None else _part_pixels(part, by)
        if part is not None and pixels is not None:
            return Decoded(pixels, (height, width), by, part.top // by, part.left // by)
        return Decoded(_jpeg_pixels(data, by, height, width, strict=True), (height, width), by)
    except (ValueError, RuntimeError):
        return None


def _part_pixels(part: Part, by: int) -> Pixels | None:
    """None: something is wrong with this part; the whole image will tell what."""
    try:
        # Complaints are not asked for where data of more rows follows. Pillow, to which images go that
        # simplejpeg complains of, passes over the same ones: for it, too, only a missing end is a fault.
        return _jpeg_pixels(part.data, by, part.height, part.width, strict=part.exact)
    except (ValueError, RuntimeError):
        return None


def _jpeg_pixels(data: bytes | bytearray, by: int, height: int, width: int, *, strict: bool) -> Pixels:
    # simplejpeg takes the smallest of libjpeg's scales that gives at least this size: 1 / by exactly.
    least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=strict, **least))


def png_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in a PNG's header: checked before Pillow opens it."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _decode_pillow(data: bytes) -> Pixels | str:
    # Pillow's plug-ins raise almost anything on damaged input. Only Pillow runs in this block, so
    # no fault of our own is taken for a bad image.
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                return "too many pixels"
            image.load()
            converted = _to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return "too many pixels"
    except UnidentifiedImageError:
        return "not an image"
    except MemoryError:
        return "out of memory"
    except Exception as error:
        return "truncated" if "truncated" in str(error).lower() else f"damaged ({type(error).__name__})"
    return converted


def _to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.asarray(image)
        # 16-bit levels lie in I and I;16 alike; Pillow's own conversion clips them at 255.
        scaled = (
            grey / 256 if image.mode != "F" and (image.mode != "I" or grey.max(initial=0) > 255) else grey
        )
        return np.repeat(np.clip(scaled, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P":
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))

"""Samples of a dataset as small pictures inside the page.

A thumbnail keeps the picture's shape; one smaller than it stays pixel by pixel, so that a drawing of 32 px
is not blurred. JPEG, or PNG where that is smaller (drawings). The same sample gives the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

from PIL import Image

from pipeline.data.decode import Pixels, decode
from pipeline.data.view import View

SIDE = 96  # px, shown at 72 px or less: sharp enough on a phone's screen
_QUALITY = 80


def thumbnails(view: View, samples: Sequence[int]) -> Iterator[tuple[int, str]]:
    """(sample id, `data:` address) of each sample that can be decoded, in order.

    Raises:
        VitlineError: shards that are gone or damaged.
    """
    for sample in samples:
        pixels = decode(view.read(sample))
        if not isinstance(pixels, str):
            yield sample, address(pixels)


def address(pixels: Pixels, side: int = SIDE) -> str:
    """RGB (H, W, 3) as a `data:` address of a picture at most `side` px wide and high."""
    image = Image.fromarray(pixels)
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    kinds = {"png": _encoded(image, "PNG", optimize=True), "jpeg": _encoded(image, "JPEG", quality=_QUALITY)}
    kind = min(kinds, key=lambda name: len(kinds[name]))
    return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}"


def _encoded(image: Image.Image, kind: str, **how: int) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind, **how)
    return data.getvalue()

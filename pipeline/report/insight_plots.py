"""The drawings of insight.py: sheets of small pictures, and the plot of attention distances.

Photos are placed pixel by pixel at the PNG's resolution and carried as JPEG inside the page; everything
else has few colours and stays lossless.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.report.figures import COLOURS, HALF, WIDE, Drawing, new_figure, render, series_colour, style
from pipeline.report.words import clean_end

Array = NDArray[np.float64]

_DPI = 160  # of the PNG, see figures.render
_PHOTO, _PHOTO_GAP, _PAIR_GAP, _LABEL = 224, 14, 6, 34  # pixels of a sheet
_COLUMNS = 6
_FILTER, _FILTER_GAP, _FILTER_LABEL, _FILTER_COLUMNS = 112, 12, 26, 7
_CELLS = 40_000  # of the positions' tiles, at most: 14 × 14 tiles of as many cells fit
_JPEG_QUALITY = 85


def rollout(images_BCHW: Tensor, masks_BHW: Tensor, shares_BRS: Array, names: Sequence[str]) -> Drawing:
    """Each image, below it the same seen through its mask, and the share of each patch from 0 to the largest.

    Args:
        images_BCHW: uint8.
        masks_BHW: in [0, 1], of the images' size.
    """
    lines = -(-len(names) // _COLUMNS)
    columns = -(-len(names) // lines)
    step_x, step_y = _PHOTO + _PHOTO_GAP, _LABEL + 3 * (_PHOTO + _PAIR_GAP) + _PHOTO_GAP
    photos_BCHW = images_BCHW.float()
    masked_BCHW = photos_BCHW * masks_BHW.unsqueeze(1)
    heat_BRS4 = matplotlib.colormaps["viridis"](
        shares_BRS / shares_BRS.max(axis=(1, 2), keepdims=True), bytes=True
    )
    with style():
        figure, axes = _sheet(columns * step_x, lines * step_y)
        for index, name in enumerate(names):
            left = (index % columns) * step_x + _PHOTO_GAP // 2
            top = (index // columns) * step_y + _LABEL
            axes.text(left, top - 8, clean_end(name, 26), fontsize=8, va="baseline")
            pictures = (_photo(photos_BCHW[index]), _photo(masked_BCHW[index]), heat_BRS4[index])
            for row, picture in enumerate(pictures):
                _place(axes, picture, left, top + row * (_PHOTO + _PAIR_GAP), _PHOTO)
        drawing = render(figure, "rollout", "Images, and where the output's attention goes in them")
    return replace(drawing, svg=_with_jpeg(drawing.svg))


def filters(components: Tensor, shares: Array) -> Drawing:
    """Components (count, 3, P, P) as small pictures, grey is zero; under each its share of the variance."""
    columns = min(_FILTER_COLUMNS, len(components))
    high = _FILTER + _FILTER_LABEL + _FILTER_GAP
    peak = components.flatten(1).abs().amax(dim=1).clamp(min=1e-12)
    scaled = 127.5 + 127.5 * components / _signs(components, peak).view(-1, 1, 1, 1)
    with style():
        figure, axes = _sheet(columns * (_FILTER + _FILTER_GAP), -(-len(components) // columns) * high)
        for index, (tile, share) in enumerate(zip(scaled, shares, strict=True)):
            left = (index % columns) * (_FILTER + _FILTER_GAP) + _FILTER_GAP // 2
            top = (index // columns) * high
            _place(axes, _bytes(tile), left, top, _FILTER)
            where = (left + _FILTER / 2, top + _FILTER + _FILTER_LABEL - 7)
            axes.text(*where, f"{100 * share:.1f} %", fontsize=7, ha="center", color=COLOURS["muted"])
        return render(figure, "filters", "Principal components of the patch filters")


def positions(similarity: Array) -> Drawing:
    """A tile for each patch: the cosine of its position with those of all patches, (R, S, R, S).

    Of a fine grid every second or third patch has a tile, so that the picture stays small.
    """
    rows, columns = similarity.shape[:2]
    colours, between = matplotlib.colormaps["viridis"], Normalize(-1, 1)
    every = 1
    while len(range(0, rows, every)) * len(range(0, columns, every)) * rows * columns > _CELLS:
        every += 1
    with style():
        figure = new_figure(HALF, 0.5 + 4.1 * min(1.5, rows / columns))
        axes = figure.subplots()
        sheet, (step_y, step_x) = _tiles(colours(between(similarity[::every, ::every]), bytes=True))
        axes.imshow(sheet, interpolation="none")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        _number(axes.set_yticks, range(0, rows, every), step_y)
        _number(axes.set_xticks, range(0, columns, every), step_x)
        axes.set_xlabel("column of the patch")
        axes.set_ylabel("row of the patch")
        bar = figure.colorbar(ScalarMappable(between, colours), ax=axes, shrink=0.6, aspect=22, pad=0.02)
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)
        bar.set_ticks([-1, 0, 1])
        return render(figure, "positions", "Similarity of each patch's position with all others")


def distance(pixels: Array, even: float) -> Drawing:
    """A dot for each head, (layers, heads) pixels; a line through their means; `even` as a mark."""
    layers, heads = pixels.shape
    depth = np.arange(1, layers + 1)
    with style():
        figure = new_figure(WIDE, 3.0)
        axes = figure.subplots()
        axes.axhline(even, color=COLOURS["muted"], linewidth=1.1, linestyle=":", label="even attention")
        axes.plot(
            depth, pixels.mean(axis=1), color=series_colour(1), linewidth=1.4, label=f"mean of {heads} heads"
        )
        axes.plot(
            depth.repeat(heads),
            pixels.ravel(),
            linestyle="",
            marker="o",
            markersize=5,
            markeredgewidth=0,
            alpha=0.65,
            color=series_colour(0),
            label="one head",
        )
        axes.set_ylim(0, 1.12 * max(even, float(pixels.max())))
        axes.set_xlim(0.5, layers + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("mean attention distance, pixels")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, fontsize=8.5, borderaxespad=0.2, reverse=True
        )
        return render(figure, "distance", "Mean attention distance of each head by layer")


def _sheet(width: int, height: int) -> tuple[Figure, Any]:
    """A figure of so many pixels in the PNG, and axes that measure in them from the top left."""
    figure = new_figure(width / _DPI, height / _DPI)
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _place(axes: Any, picture: NDArray[np.uint8], left: float, top: float, side: int) -> None:
    # "none" also keeps the pictures apart: Matplotlib would resample all of them into one.
    axes.imshow(
        picture, interpolation="none", extent=(left, left + side, top + side, top), aspect="auto", zorder=2
    )


def _photo(image_CHW: Tensor) -> NDArray[np.uint8]:
    """An image brought to the sheet's size: small ones keep their pixels, large ones are smoothed."""
    size = (_PHOTO, _PHOTO)
    image = image_CHW.unsqueeze(0)
    if max(image.shape[2:]) < _PHOTO:
        return _bytes(F.interpolate(image, size, mode="nearest-exact")[0])
    return _bytes(F.interpolate(image, size, mode="bilinear", antialias=True)[0])


def _bytes(image_CHW: Tensor) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of values in [0, 255]."""
    pixels: NDArray[np.uint8] = image_CHW.permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    return pixels


def _signs(components: Tensor, peak: Tensor) -> Tensor:
    """`peak` with the sign that makes the largest value of each component positive: theirs is by chance."""
    flat = components.flatten(1)
    largest = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True)).squeeze(1)
    return peak.where(largest >= 0, -peak)


def _tiles(colours: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Tiles (r, s, R, S, 4) as one picture with clear gaps, and the steps from tile to tile."""
    down, across, rows, columns = colours.shape[:4]
    zoom = max(1, 300 // max(down * rows, across * columns))
    gap = max(1, round(0.12 * rows * zoom))
    large = colours.repeat(zoom, axis=2).repeat(zoom, axis=3)
    spaced = np.pad(large, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)))
    step_y, step_x = spaced.shape[2:4]
    sheet = spaced.transpose(0, 2, 1, 3, 4).reshape(down * step_y, across * step_x, 4)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap], (step_y, step_x)


def _number(set_ticks: Any, places: range, step: float) -> None:
    """Numbers from 1 at the middle of the tiles."""
    set_ticks([(i + 0.45) * step for i in range(len(places))], [str(place + 1) for place in places])


def _with_jpeg(svg: str) -> str:
    """The same drawing with its photos as JPEG: a fifth of the bytes."""
    return re.sub(r"data:image/png;base64,([^\"]*)", lambda found: _jpeg(found[0], found[1]), svg)


def _jpeg(whole: str, png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.size != (_PHOTO, _PHOTO):
        return whole  # a map of patches, whose edges stay sharp
    text = io.BytesIO()
    image.convert("RGB").save(text, format="JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(text.getvalue()).decode()}"

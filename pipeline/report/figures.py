"""Matplotlib figures as SVG that lives inside a page, and as PNG beside it.

Colours are drawn as fixed marks and turned into CSS variables afterwards, so one drawing is readable on
paper, in light and in dark mode. Text stays text. Same input, same bytes: ids are salted, no dates.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

HALF, WIDE = 5.4, 11.1  # inches: half of the page, all of it
# Role → colour of the PNG. The page's style sheet says what each role looks like in light and dark.
# Series: Okabe and Ito's palette, told apart with any colour vision; shapes differ as well.
COLOURS = {
    "ink": "#1b2027",
    "muted": "#66707c",
    "line": "#d5dae0",
    "page": "#fdfdfd",
    "s0": "#0072b2",
    "s1": "#d55e00",
    "s2": "#009e73",
    "s3": "#b0609a",
    "s4": "#a87800",
    "s5": "#4a9fd0",
}
MARKERS = ("o", "s", "D", "^", "v", "P")

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitline",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": COLOURS["ink"],
    # A class named $\frac$ is a name, not a formula.
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.unicode_minus": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Drawing:
    """One figure: `svg` goes into the page as it is, `png` beside it."""

    name: str
    svg: str
    png: bytes


def style() -> Any:
    """Context in which figures are made and rendered."""
    return matplotlib.rc_context(_STYLE)


def series_colour(index: int) -> str:
    return COLOURS[f"s{index % 6}"]


def series_marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; not known to pyplot, so nothing is left behind."""
    return Figure(figsize=(width, height), layout="constrained")


def new_panels(
    count: int, width: float, head: float, each: float, *, most: int = 3, shared: bool = False
) -> tuple[Figure, NDArray[Any]]:
    """A figure with `count` panels, at most `most` side by side, and all its axes; those beyond are empty.

    Args:
        width: of the figure. head: height beside the panels. each: height of a row of panels. Inches.
        shared: all panels have the same axes.
    """
    columns = min(most, max(2, count))
    rows = -(-count // columns)
    figure = new_figure(width, head + each * rows)
    grid: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).ravel()
    for axes in grid[count:]:
        axes.set_axis_off()
    return figure, grid


def render(figure: Figure, name: str, title: str) -> Drawing:
    """Draw `figure`; `title` is read out to those who do not see it."""
    with warnings.catch_warnings():
        # A script that DejaVu lacks shows as boxes in the PNG; browsers have it, and the table does.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        FigureCanvasAgg(figure)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return Drawing(name, _inline(text.getvalue(), name, title), image.getvalue())


def _inline(svg: str, name: str, title: str) -> str:
    """An SVG document as an element of a page: own ids, no style that leaks, colours as variables."""
    svg = svg[svg.index("<svg") :]
    for dropped in (r"<metadata>.*?</metadata>", r"<style type=\"text/css\">.*?</style>", r"<!--.*?-->"):
        svg = re.sub(dropped, "", svg, flags=re.DOTALL)
    # Tags only: a name that looks like a colour or an id stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: _adapt(tag[0], name), svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1]) * 4 / 3  # type: ignore[index]
    head = f'role="img" aria-label="{title}" style="width:min(100%,{width:.0f}px)"'
    svg = re.sub(r' height="[\d.]+pt"', "", svg, count=1)
    return re.sub(r'width="[\d.]+pt"', head, svg, count=1).strip()


def _adapt(tag: str, name: str) -> str:
    if tag.startswith("<image"):
        # Named after its content, so that two equal pictures have one id; nothing refers to it.
        tag = re.sub(r' id="[^"]*"', "", tag)
    # Ids are unique in a drawing, not in a page.
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(xlink:href="|url\()#', rf"\1#{name}-", tag)
    for role, colour in COLOURS.items():
        tag = tag.replace(colour, f"var(--{role})")
    # Matplotlib 3.11 writes font-family, older ones the short form.
    tag = re.sub(r'font-family: [^;"]*', "font-family: var(--font)", tag)
    return re.sub(r'font: ((?:bold )?[\d.]+px)[^;"]*', r"font: \1 var(--font)", tag)

"""What sections of the page are made of, as plain values: plots, tables, pictures with a line below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.report.figures import Drawing
from pipeline.report.sheet import Sheet


@dataclass(frozen=True)
class Panel:
    """A plot, what it says, and its numbers."""

    drawing: Drawing
    caption: str
    table: Sheet
    wide: bool = False


@dataclass(frozen=True)
class Tile:
    """A small picture as a `data:` address, with lines of text below; `says` is read out in its place."""

    source: str
    says: str
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Gallery:
    """Tiles that belong together; `note` says why there are none, or how they were chosen."""

    title: str
    tiles: Sequence[Tile]
    note: str = ""


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    text: Sequence[str] = ()
    table: Sheet | None = None
    figures: Sequence[Panel] = ()
    galleries: Sequence[Gallery] = ()
    points: Sequence[str] = ()
    folded: Sequence[tuple[str, Sheet]] = ()
    listing: tuple[str, str] | None = None
    short: str = ""

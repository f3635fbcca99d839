"""A table as plain values: what the page, and the terminal, draw in their own way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """One row; `rule` draws a line above it, `tone` colours its last word."""

    cells: Sequence[str]
    rule: bool = False
    tone: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table; `words` are the columns of text, which are set to the left."""

    heads: Sequence[str]
    rows: Sequence[Line]
    words: Sequence[int] = (0,)


def grouped(heads: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> Sheet:
    """A sheet with a rule where the first column changes, and its repeats left out."""
    lines = []
    before = None
    for row in rows:
        new = row[0] != before
        lines.append(Line([row[0] if new else "", *row[1:]], rule=new and before is not None))
        before = row[0]
    return Sheet(heads, lines, words)

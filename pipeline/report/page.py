"""The page: a template, a style sheet, and values that are escaped on their way in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from pipeline.report.parts import Section
from pipeline.report.words import printable, tally, verdicts
from pipeline.transfer.results import Comparison

_HERE = Path(__file__).parent
# Above these the page begins with a tally, and the others are folded away.
MOST_VERDICTS = 5


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page holds. `facts` are (term, value); the rest is text."""

    name: str
    question: str
    comparison: Comparison
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    footer: str


def render_page(page: Page) -> str:
    """The HTML: one document without scripts that loads nothing.

    Every value is escaped by the template, but for the drawings, whose text Matplotlib has escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sentences = [_split(sentence) for sentence in verdicts(page.comparison)]
    judged = list(zip(page.comparison.pairs, sentences, strict=True))
    return environment.get_template("page.html.j2").render(
        css=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        page=page,
        tally=tally(page.comparison) if len(judged) > MOST_VERDICTS else [],
        verdicts=judged[:MOST_VERDICTS],
        more_verdicts=judged[MOST_VERDICTS:],
        warnings=[printable(line) for line in page.comparison.warnings],
    )


def _split(sentence: str) -> dict[str, str]:
    """A verdict and, apart, what it rests on."""
    head, bracket, rest = sentence.partition(" (")
    return {"head": head, "rest": bracket.strip() + rest}

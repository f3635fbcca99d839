"""Drawings as parts of a page."""

from __future__ import annotations

from pipeline.report.figures import COLOURS, Drawing, new_figure, render, style


def drawn(label: str) -> Drawing:
    with style():
        figure = new_figure(3, 2)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], marker="o", color=COLOURS["s1"])
        axes.set_title(label)
        return render(figure, "one", "A line")


def test_a_drawing_is_one_element_in_the_readers_colours_and_font() -> None:
    svg = drawn("title").svg
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    assert 'role="img" aria-label="A line" style="width:min(100%,288px)"' in svg
    assert "var(--s1)" in svg
    assert "var(--font)" in svg
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_what_looks_like_markup_in_a_name_stays_as_it_is() -> None:
    name = 'id="x" url(#x) #d55e00 $\\frac$ <b>&'
    assert 'id="x" url(#x) #d55e00 $\\frac$ &lt;b&gt;&amp;' in drawn(name).svg


def test_letters_that_the_font_lacks_are_no_warning() -> None:
    assert "猫" in drawn("猫").svg


def test_equal_drawings_have_equal_bytes() -> None:
    assert drawn("a") == drawn("a")
    assert drawn("a").png != drawn("b").png

"""The page and the tables of a comparison of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.report import frontier, plots, sheets, spent_sheets
from pipeline.report.page import Page, render_page
from pipeline.report.parts import Panel, Section
from pipeline.report.sections import compute_section, groups_section
from pipeline.report.sheet import Line, Sheet
from pipeline.report.words import clean
from pipeline.rundir import write_atomic
from pipeline.transfer.results import Comparison

# One row: the setting, and its value in each run.
Differing = Sequence[tuple[str, tuple[Any, ...]]]


def settings_table(comparison: Comparison, differing: Differing, labels: Sequence[str]) -> Table:
    """Terminal table of the settings in which the runs differ."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting")
    for label in labels:
        table.add_column(Text(clean(label) + (" (baseline)" if label == comparison.baseline else "")))
    for key, values in differing:
        table.add_row(Text(clean(key, 60)), *(Text(_shown(value)) for value in values))
    return table


def cost_table(comparison: Comparison) -> Table:
    """Terminal table of what each row's trainings used."""
    sheet = spent_sheets.costs(comparison)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, head in enumerate(sheet.heads):
        table.add_column(head, justify="left" if place in sheet.words else "right")
    for line in sheet.rows:
        table.add_row(*(Text(cell) for cell in line.cells))
    return table


def write_runs_page(
    path: Path, comparison: Comparison, differing: Differing, labels: Sequence[str], command: str
) -> None:
    """Write the comparison as one self-contained page.

    Args:
        labels: of the runs, in the order of the values in `differing`.
        command: what made it, for the foot of the page.
    """
    page = Page(
        name=" · ".join(clean(label) for label in labels),
        question=f"Which of {len(labels)} runs transfers better?",
        comparison=comparison,
        facts=[
            ("Baseline", clean(comparison.baseline)),
            ("Runs", str(len(labels))),
            ("Datasets", ", ".join(clean(name) for name in comparison.datasets)),
            (
                "Protocol",
                ", ".join(clean(name) for name in sorted({row.protocol for row in comparison.rows})),
            ),
        ],
        sections=list(_sections(comparison, differing, labels)),
        footer=f"made by: {command}",
    )
    write_atomic(path, render_page(page).encode(errors="replace"))


def _sections(comparison: Comparison, differing: Differing, labels: Sequence[str]) -> list[Section]:
    figures = [
        Panel(
            plots.accuracy(comparison),
            "Mean over seeds. The bar covers the choice of test images; the ticks are the seeds.",
            sheets.seeds(comparison),
        )
    ]
    if comparison.pairs:
        caption = "Difference to the baseline on the same test images. Filled: shown to differ; hollow: not."
        figures.insert(0, Panel(plots.forest(comparison), caption, sheets.pairs(comparison)))
    compute = "Every training behind a point counts, the whole pre-training included."
    lines = [Line([clean(key, 60), *map(_shown, values)]) for key, values in differing]
    settings = Sheet(("setting", *map(clean, labels)), lines, tuple(range(len(labels) + 1)))
    limits = (
        "Each run is one pre-training: its seed alone moves results, and no interval here covers that.",
        "Intervals cover the choice of test images; how much a fine-tuning seed moves a number is in the "
        "intervals over seeds.",
        "“No difference shown” is not “no difference”: the interval says which differences remain possible.",
    )
    return [
        Section("results", "Results", table=sheets.results(comparison), figures=figures),
        *([groups_section(comparison)] if comparison.means else []),
        compute_section(comparison, compute),
        *_size(comparison),
        Section("settings", "Settings that differ", table=settings if lines else None, short="Settings"),
        Section("limits", "What this does not show", points=limits, short="Limits"),
    ]


def _size(comparison: Comparison) -> Iterator[Section]:
    """Where the runs were pre-trained on different numbers of images."""
    rows = frontier.sized(comparison)
    if rows:
        caption = (
            "Each point is one pre-training; its bar covers the choice of test images. Runs that differ in "
            "more than their data differ here for more than its size: see the settings below."
        )
        panel = Panel(frontier.size_plot(rows), caption, frontier.size_sheet(rows), wide=True)
        yield Section("size", "Accuracy against pre-training images", figures=[panel], short="Data size")


def _shown(value: Any) -> str:
    return "–" if value is None else clean(value)

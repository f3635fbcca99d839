"""The comparison as a table: for the terminal, as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.report.words import (
    bounds,
    clean,
    compute_of,
    count,
    exaflops,
    p_value,
    percent,
    printable,
    quantity,
    seeds_of,
    signed,
    verdicts,
)
from pipeline.transfer.results import Comparison, Pair, Row

_STYLES = {"better": "bold green", "worse": "bold red", "not comparable": "yellow"}
HEADS = ("dataset", "model", "seeds", "n", "top-1", "95 % CI", "Δ pp", "95 % CI", "p (Holm)", "verdict")


def verdict_of(pair: Pair | None, margin_pp: float | None = None) -> str:
    if pair is None:
        return ""
    return f"equivalent within {margin_pp:g} pp" if pair.verdict == "equivalent" else pair.verdict


def pair_of(comparison: Comparison, row: Row) -> Pair | None:
    """The pair in which `row` is the challenger."""
    return next((p for p in comparison.pairs if (p.dataset, p.challenger) == (row.dataset, row.label)), None)


def cells_of(comparison: Comparison, row: Row) -> tuple[str, ...]:
    """One line of the table, in the order of the heads."""
    pair = pair_of(comparison, row)
    against: tuple[str, ...] = ("baseline" if row.label == comparison.baseline else "", "", "", "")
    if pair is not None:
        against = (
            signed(pair.delta_pp, 2),
            bounds(pair.interval_pp, 2),
            p_value(pair.p_holm).removeprefix("p ").removeprefix("= "),
            verdict_of(pair, comparison.margin_pp),
        )
    return (
        clean(row.dataset),
        clean(row.label),
        seeds_of(row),
        count(row.n),
        percent(row.top1),
        bounds(row.interval.scaled(100)),
        *against,
    )


def terminal_table(comparison: Comparison) -> Table:
    """The table that `vitline run` and `vitline compare` print; names are text, never markup."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for head in HEADS:
        table.add_column(
            head, justify="left" if head in ("dataset", "model", "verdict") else "right", no_wrap=True
        )
    before = ""
    for row in comparison.rows:
        texts = [Text(text) for text in cells_of(comparison, row)]
        if row.dataset == before:
            texts[0] = Text("")
        elif before:
            table.add_row()
        before = row.dataset
        pair = pair_of(comparison, row)
        if pair is not None:
            texts[-1].stylize(_STYLES.get(pair.verdict, ""))
        table.add_row(*texts)
    return table


MEAN_HEADS = ("mean over", "model", "top-1", "Δ pp", "95 % CI")


def mean_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """One line for each mean over datasets, in the order of `MEAN_HEADS`."""
    return [
        (
            clean(mean.name),
            clean(mean.label),
            percent(mean.top1),
            "baseline"
            if mean.label == comparison.baseline
            else "–"
            if mean.delta_pp is None
            else signed(mean.delta_pp, 2),
            "" if mean.interval_pp is None else bounds(mean.interval_pp, 2),
        )
        for mean in comparison.means
    ]


def means_table(comparison: Comparison) -> Table:
    """Terminal table of the means of groups."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in MEAN_HEADS:
        table.add_column(head, justify="left" if head in MEAN_HEADS[:2] else "right", no_wrap=True)
    for line in mean_cells(comparison):
        table.add_row(*(Text(text) for text in line))
    return table


def as_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON values: rows, pairs, verdict sentences and warnings."""
    return {
        "schema": 1,
        "baseline": comparison.baseline,
        "margin_pp": comparison.margin_pp,
        "verdicts": verdicts(comparison),
        "warnings": list(comparison.warnings),
        "rows": [_plain(asdict(row)) for row in comparison.rows],
        "pairs": [_plain(asdict(pair)) for pair in comparison.pairs],
        "means": [_plain(asdict(mean)) for mean in comparison.means],
    }


def _plain(value: Any) -> Any:
    """JSON knows no NaN: what was not counted is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def as_csv(comparison: Comparison) -> str:
    """One line for each dataset and model, numbers in full; shares as in the JSON."""
    names = "dataset model seeds n top1 low high seed_low seed_high learning_rates images exaflops seconds"
    names += (
        " device_hours protocol test_fingerprint baseline delta_pp delta_low delta_high p p_holm test verdict"
    )
    lines: list[Sequence[object]] = [[*names.split(), "intervals_overlap"]]
    for row in comparison.rows:
        lines.append([*_row_values(row), *_pair_values(pair_of(comparison, row))])
    return to_csv(lines)


def _row_values(row: Row) -> list[object]:
    seeds = row.seed_interval
    return [
        row.dataset,
        row.label,
        len(row.seeds),
        row.n,
        row.top1,
        row.interval.low,
        row.interval.high,
        seeds.low if seeds else None,
        seeds.high if seeds else None,
        " ".join(f"{rate:g}" for rate in row.learning_rates),
        row.cost.images,
        row.cost.exaflops,
        row.cost.seconds,
        None if math.isnan(row.cost.device_hours) else row.cost.device_hours,
        row.protocol,
        row.test_fingerprint,
    ]


def _pair_values(pair: Pair | None) -> list[object]:
    if pair is None:
        return [None] * 9
    interval = pair.interval_pp
    low, high = (interval.low, interval.high) if interval else (None, None)
    decided = [pair.p, pair.p_holm, pair.test, pair.verdict, pair.intervals_overlap]
    return [pair.baseline, pair.delta_pp, low, high, *decided]


def to_csv(lines: Iterable[Sequence[object]]) -> str:
    """CSV text. A name that a spreadsheet would run as a formula gets an apostrophe before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for line in lines:
        writer.writerow([_safe(value) for value in line])
    return text.getvalue()


def _safe(value: object) -> object:
    if not isinstance(value, str):
        return "" if value is None else value
    text = printable(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def as_markdown(comparison: Comparison) -> str:
    """Verdicts, the table and the warnings as Markdown."""
    lines = [f"- {_escape(sentence)}" for sentence in verdicts(comparison)]
    lines += ["", f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS)]
    lines += [f"| {' | '.join(map(_escape, cells_of(comparison, row)))} |" for row in comparison.rows]
    if comparison.means:
        lines += ["", f"| {' | '.join(MEAN_HEADS)} |", "|" + "---|" * len(MEAN_HEADS)]
        lines += [f"| {' | '.join(map(_escape, line))} |" for line in mean_cells(comparison)]
    if comparison.warnings:
        lines += ["", *(f"> {_escape(printable(line))}" for line in comparison.warnings)]
    return "\n".join(lines).strip() + "\n"


def _escape(text: str) -> str:
    for sign in "\\`*_|<>[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def cost_text(row: Row) -> str:
    """What all trainings behind a row used."""
    amount, unit = compute_of(row.cost)
    return exaflops(amount) if unit == "exaFLOP" else quantity(amount, "images")

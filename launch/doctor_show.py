"""The doctor's table, for people: what failed first, then what to watch, then what is well."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.doctor_report import Report

_ORDER = ("fail", "warn", "pass")
_STYLES = {"fail": "red", "warn": "yellow", "pass": "green"}


def print_report(report: Report, *, width: int | None) -> None:
    console = Console(highlight=False, width=width)
    count = f"{len(report.nodes)} node" + ("s" if len(report.nodes) != 1 else "")
    table = Table(
        "",
        "check",
        "found",
        "expected",
        "do this",
        title=f"{count}, {report.seconds:.0f} s",
        title_justify="left",
        box=box.SIMPLE,
    )
    for check in sorted(report.checks, key=lambda check: _ORDER.index(check.level)):
        style = _STYLES[check.level]
        row = [check.name, check.found, check.expected, check.do]
        table.add_row(f"[{style}]{check.level}[/{style}]", *map(escape, row))
    console.print(table)

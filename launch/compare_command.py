"""The command `vitline compare`: several runs on the same test images."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="directories of finished runs")],
    baseline: Annotated[str | None, typer.Option(help="one of them; default: the first")] = None,
    start: Annotated[
        str, typer.Option(help="whose cells are compared: pretrained or scratch")
    ] = "pretrained",
    margin: Annotated[
        float | None, typer.Option(min=0, help="points within which models may be called equivalent")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="compare over protocols or tests, and mark it")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page too")] = None,
    markdown: Annotated[bool, typer.Option("--md", help="print Markdown")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON on stdout")] = False,
) -> None:
    """Compare the models of several runs: differences on the same images, intervals, cost.

    Example: vitline compare runs/a runs/b --baseline runs/a --html compare.html
    """
    from rich.console import Console

    from pipeline.report import tables
    from pipeline.report.runs import cost_table, settings_table, write_runs_page
    from pipeline.report.words import verdicts
    from pipeline.transfer.runs import compare_runs, differing_settings, run_labels

    comparison = compare_runs(runs, baseline, start=start, force=force, margin_pp=margin)
    labels, differing = run_labels(runs), differing_settings(runs)
    if html is not None:
        command = shlex.join(["vitline", *sys.argv[1:]])
        write_runs_page(html, comparison, differing, labels, command)
    if as_json:
        typer.echo(json.dumps(tables.as_dict(comparison), indent=1))
    elif markdown or as_csv:
        typer.echo(tables.as_markdown(comparison) if markdown else tables.as_csv(comparison), nl=False)
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
        for sentence in (*verdicts(comparison), *comparison.warnings):
            console.print(sentence, markup=False)
        console.print(tables.terminal_table(comparison))
        console.print(settings_table(comparison, differing, labels))
        console.print(cost_table(comparison))

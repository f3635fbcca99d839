"""The command `vitline compare`: several runs on the same test images, from their directories or MLflow."""

from __future__ import annotations

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Json
from pipeline.errors import UserError, VitlineError

if TYPE_CHECKING:
    from pipeline.tracking_runs import TrackedRuns
    from pipeline.transfer.comparison import Comparison


class WorseThanBaseline(VitlineError):
    """A challenger was shown to be worse than allowed, or could not be judged."""

    exit_code = 6


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="RUN…", help="directory, MLflow run id, latest, or MODEL@ALIAS"),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="of MLflow; without RUN all its finished runs are compared")
    ] = None,
    tracking: Annotated[
        str | None,
        typer.Option(help="MLflow's address; default: MLFLOW_TRACKING_URI, else sqlite:///runs/mlflow.db"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="a run, named as the others are; default: the first")
    ] = None,
    start: Annotated[
        str, typer.Option(help="whose cells are compared: pretrained or scratch")
    ] = "pretrained",
    margin: Annotated[
        float | None, typer.Option(min=0, help="points within which models may be called equivalent")
    ] = None,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(
            "--fail-if-worse",
            min=0,
            metavar="POINTS",
            help="exit code 6 if one is shown to be worse than the baseline by more than this on any dataset",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="compare over protocols or tests, and mark it")
    ] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="write a page too")] = None,
    markdown: Annotated[bool, typer.Option("--md", help="print Markdown")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="print CSV")] = False,
    as_json: Json = False,
) -> None:
    """Compare the models of several runs: differences on the same images, intervals, cost.

    Example: vitline compare runs/a latest --baseline runs/a --html compare.html --fail-if-worse 0.5
    """
    from pipeline.transfer.runs import compare_runs, differing_settings, run_labels

    uri = tracking or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///runs/mlflow.db"
    with tempfile.TemporaryDirectory() as directory:
        paths = find_runs(runs or [], uri, experiment, baseline, Path(directory))
        against = str(paths[baseline]) if baseline else None
        chosen = list(dict.fromkeys(paths.values()))
        comparison = compare_runs(chosen, against, start=start, force=force, margin_pp=margin)
        labels, differing = run_labels(chosen), differing_settings(chosen)
    if html is not None:
        from pipeline.report.runs import write_runs_page

        write_runs_page(html, comparison, differing, labels, shlex.join(["vitline", *sys.argv[1:]]))
    if as_json or markdown or as_csv:
        _echo(comparison, "json" if as_json else "md" if markdown else "csv")
    else:
        _print(comparison, differing, labels)
    if fail_if_worse is not None:
        check_not_worse(comparison, fail_if_worse)


def find_runs(
    selectors: Sequence[str], uri: str, experiment: str | None, baseline: str | None, into: Path
) -> dict[str, Path]:
    """Selector → directory, in their order; the baseline is among them. What is not here is downloaded.

    Raises:
        UserError: a selector that names nothing, or none where no experiment is named.
    """
    wanted = list(dict.fromkeys(selectors))
    if not wanted and experiment is None:
        raise UserError("no run", "runs, or --experiment NAME", "name them: vitline compare runs/a runs/b")
    remote = [name for name in [*wanted, baseline or ""] if name and not Path(name).is_dir()]
    found = {name: Path(name) for name in wanted if name not in remote}
    if remote or not wanted:
        from pipeline.tracking_runs import TrackedRuns

        store = TrackedRuns(uri, experiment or "vitline")
        if not wanted:
            wanted = store.finished()
            remote = [*remote, *wanted]
        found |= {name: store.fetch(_run_id(store, name), into) for name in dict.fromkeys(remote)}
    if baseline and baseline not in found:
        found[baseline] = Path(baseline)
    return {name: found[name] for name in dict.fromkeys([*wanted, *([baseline] if baseline else [])])}


def _run_id(store: TrackedRuns, selector: str) -> str:
    if selector == "latest":
        finished = store.finished()
        if not finished:
            raise UserError("latest: no finished run", "at least one", "finish one: vitline run CONFIG")
        return finished[0]
    name, sign, alias = selector.rpartition("@")
    return store.at_alias(name, alias) if sign else selector


def check_not_worse(comparison: Comparison, margin_pp: float) -> None:
    """Raises WorseThanBaseline for what is shown to be worse by more than `margin_pp`, or not judged."""
    worse = [
        f"{pair.challenger} on {pair.dataset}: {pair.delta_pp:+.2f} pp"
        for pair in comparison.pairs
        if pair.verdict == "not comparable" or (pair.verdict == "worse" and pair.delta_pp < -margin_pp)
    ]
    if worse:
        raise WorseThanBaseline(
            f"worse than {comparison.baseline}, or not comparable with it: {'; '.join(worse)}",
            f"no dataset on which a challenger is shown to lose more than {margin_pp:g} pp",
            "see the table; a smaller loss than can be shown passes this check",
        )


def _echo(comparison: Comparison, kind: str) -> None:
    from pipeline.report import tables

    if kind == "json":
        typer.echo(json.dumps(tables.as_dict(comparison), indent=1))
    else:
        text = tables.as_markdown(comparison) if kind == "md" else tables.as_csv(comparison)
        typer.echo(text, nl=False)


def _print(
    comparison: Comparison, differing: Sequence[tuple[str, tuple[object, ...]]], labels: list[str]
) -> None:
    from rich.console import Console

    from pipeline.report import tables
    from pipeline.report.runs import cost_table, settings_table
    from pipeline.report.words import verdicts

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for sentence in (*verdicts(comparison), *comparison.warnings):
        console.print(sentence, markup=False)
    console.print(tables.terminal_table(comparison))
    if comparison.means:
        console.print(tables.means_table(comparison))
    console.print(settings_table(comparison, differing, labels))
    console.print(cost_table(comparison))

"""Builds RUN/report: one page that needs nothing else, the tables as files, the plots as pictures.

RUN/report/
  report.html     everything; no script, no network, the same bytes for the same results
  results.csv     one line for each dataset and model
  results.json    rows, pairs, verdicts and warnings
  jobs.json       every job behind them, with its result: what a comparison by MLflow alone needs
  NAME.png        each plot
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.events import read_events
from pipeline.report.gather import Facts, gather
from pipeline.report.page import Page, render_page
from pipeline.report.sections import sections
from pipeline.report.tables import as_csv, as_dict
from pipeline.report.words import clean, count, exaflops, quantity
from pipeline.rundir import RunDir, read_json, write_atomic, write_json
from pipeline.transfer.cells import Cost
from pipeline.transfer.results import Comparison


@dataclass(frozen=True)
class ReportPaths:
    """What was written, and the comparison that it shows."""

    html: Path
    csv: Path
    json: Path
    pictures: tuple[Path, ...]
    comparison: Comparison


def build(run: RunDir, config: Mapping[str, Any], digests: Mapping[str, str]) -> ReportPaths:
    """Write the report of the finished jobs among `digests`.

    Args:
        config: the resolved configuration, `RunConfig.model_dump(mode="json")`.
        digests: job name → digest, all jobs of the run; those that are not done are left out.

    Raises:
        UserError: nothing was evaluated yet.
        DataError: predictions that are missing or disagree with their result.
    """
    facts = gather(run, config, digests)
    parts = sections(facts)
    report = run.report
    pictures = []
    for panel in (panel for part in parts for panel in part.figures):
        pictures.append(report / f"{panel.drawing.name}.png")
        write_atomic(pictures[-1], panel.drawing.png)
    write_atomic(report / "results.csv", as_csv(facts.comparison).encode())
    write_json(report / "results.json", as_dict(facts.comparison))
    write_json(report / "jobs.json", _jobs(run, digests))
    page = Page(
        name=clean(facts.name),
        question=_question(facts),
        comparison=facts.comparison,
        facts=_facts(facts),
        sections=parts,
        footer=_footer(facts),
    )
    write_atomic(report / "report.html", render_page(page).encode(errors="replace"))
    return ReportPaths(
        html=report / "report.html",
        csv=report / "results.csv",
        json=report / "results.json",
        pictures=tuple(pictures),
        comparison=facts.comparison,
    )


def _jobs(run: RunDir, digests: Mapping[str, str]) -> dict[str, Any]:
    done = {}
    for digest in digests.values():
        job, result = read_json(run.job(digest).job), run.job(digest).read_result()
        if job is not None and result is not None and job["stage"] != "compare":
            done[digest] = {"job": job, "result": result}
    openings, _ = read_events(run.openings)
    return {"schema": 1, "jobs": done, "openings": openings}


def _question(facts: Facts) -> str:
    pretrain = facts.config["pretrain"]
    model = pretrain["model"]["name"]
    names = sorted(pretrain.get("mixture") or {}) or [pretrain["dataset"]]
    return f"What did the pre-training of {clean(model)} on {' + '.join(map(clean, names))} buy?"


def _facts(facts: Facts) -> list[tuple[str, str]]:
    pretrain, transfer = facts.config["pretrain"], facts.config["transfer"]
    protocol = transfer["protocol"]
    spent: dict[str, Cost] = {}
    for cell in facts.cells:
        spent |= {stage: cost for stage, cost in cell.cost.items() if stage == "pretrain"}
    cost = spent.get("pretrain", Cost())
    compute = f", {exaflops(cost.exaflops)}" if cost.exaflops else ""
    return [
        ("Pre-training", f"{pretrain['duration']} of {count(pretrain['batch'])}"),
        ("Images seen", f"{quantity(cost.images, '')}{compute}" if cost.images else "–"),
        ("Protocol", _protocol(protocol)),
        ("Starts", ", ".join(facts.comparison.labels)),
        ("Datasets", _listed([clean(name) for name in facts.comparison.datasets])),
        ("Seeds", _listed([str(seed) for seed in transfer["seeds"]])),
    ]


def _protocol(protocol: Mapping[str, Any]) -> str:
    own = [part["duration"] for part in protocol.get("per_dataset", {}).values() if part["duration"]]
    durations = dict.fromkeys([*own, *([] if own else [protocol.get("duration")])])
    how = " or ".join(str(duration) for duration in durations if duration) or protocol["kind"].replace(
        "_", "-"
    )
    return f"{clean(protocol['name'])}: {clean(how)} at {protocol['image_size']} px"


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)}: {', '.join(names[:3])} …"


def _footer(facts: Facts) -> str:
    when = datetime.datetime.fromtimestamp(facts.finished, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    version = f"vitline {clean(facts.version)}" if facts.version else "vitline"
    commit = f", commit {clean(facts.commit, 12)}" if facts.commit else ""
    return f"{version}{commit} · last result {when} · made by: vitline run CONFIG"

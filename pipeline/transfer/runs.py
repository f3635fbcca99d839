"""Several runs side by side: which pre-training transfers better. Needs their directories only.

Each run gives the cells of its last comparison; the runs' names become the labels. Everything else, what
is refused and how verdicts are made, is pipeline/transfer/results.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.config_io import flatten
from pipeline.errors import UserError
from pipeline.events import read_events
from pipeline.rundir import RunDir, read_json
from pipeline.transfer.results import Cell, Comparison, collect, compare

# Differ between any two runs and explain nothing.
_IDENTITY = {"name", "root"}


def compare_runs(
    paths: Sequence[Path],
    baseline: str | None = None,
    *,
    start: str = "pretrained",
    force: bool = False,
    margin_pp: float | None = None,
) -> Comparison:
    """Compare the models of several runs on the same test images.

    Args:
        paths: run directories.
        baseline: one of them, by its path or label; the first when None.
        start: whose cells of each run are compared.
        force, margin_pp: as in `compare`.

    Raises:
        UserError: a path that is no run, a run without results, fewer than two runs, or results that
            must not be compared.
        DataError: predictions that cannot be used.
    """
    if len(paths) < 2:
        raise UserError(f"{len(paths)} run", "two or more run directories", "name them: vitline compare A B")
    labels = run_labels(paths)
    against = labels[0] if baseline is None else _find(baseline, paths, labels)
    cells: list[Cell] = []
    notes: list[str] = []
    for path, label in zip(paths, labels, strict=True):
        every = _cells_of(path)
        found = [replace(cell, label=label) for cell in every if cell.start == start]
        if not found:
            raise UserError(
                f"{path} has no finished evaluation of the start {start!r}",
                "results in each run that is compared",
                "finish the run, or compare another start",
            )
        cells += found
        notes += _openings(RunDir(path), label, every)
    groups = [_config_of(path)["transfer"]["protocol"].get("groups") or {} for path in paths]
    if any(group != groups[0] for group in groups):
        notes.append("the runs group their datasets in different ways: those of the first are shown")
    result = compare(cells, against, force=force, margin_pp=margin_pp, groups=groups[0])
    shared = {dataset for dataset in result.datasets if all(result.row(dataset, name) for name in labels)}
    if not shared:
        raise UserError(
            f"no dataset was evaluated in all of {', '.join(labels)}",
            "at least one shared transfer dataset",
            "see transfer.datasets of the runs' configurations",
        )
    return replace(result, warnings=(*result.warnings, *notes))


def run_labels(paths: Sequence[Path]) -> list[str]:
    """Short names of runs: their directories', with as many parents as tell them apart."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UserError("one run is named twice", "different run directories", "name each run once")
    for depth in range(1, max(len(path.parts) for path in resolved) + 1):
        labels = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("different paths have different parts")


def differing_settings(paths: Sequence[Path]) -> list[tuple[str, tuple[Any, ...]]]:
    """(dotted key, value in each run) of the settings in which the runs differ; None where it is not set."""
    leaves = [dict(flatten(_config_of(path))) for path in paths]
    keys = dict.fromkeys(key for leaf in leaves for key in leaf)
    rows = [(key, tuple(leaf.get(key) for leaf in leaves)) for key in keys if key not in _IDENTITY]
    return [(key, values) for key, values in rows if any(value != values[0] for value in values)]


def _find(baseline: str, paths: Sequence[Path], labels: Sequence[str]) -> str:
    for path, label in zip(paths, labels, strict=True):
        if baseline == label or Path(baseline).resolve() == path.resolve():
            return label
    raise UserError(
        f"the baseline {baseline!r}", f"one of the runs: {', '.join(labels)}", "name one of these"
    )


def _config_of(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(RunDir(path).config.read_bytes())
    except (OSError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict):
        raise UserError(
            f"{path} holds no readable config.resolved.yaml",
            "the directory of a run",
            "name a directory below runs/",
        )
    return config


def _cells_of(path: Path) -> list[Cell]:
    _config_of(path)
    run = RunDir(path)
    return collect(run, list(_compared(run).values()) or _evaluated(run))


def _compared(run: RunDir) -> dict[str, str]:
    """Role → digest of what the last compare job read; {} when there is none.

    A run directory keeps the jobs of earlier settings too: only what was last compared belongs together.
    """
    events, _ = read_events(run.events)
    named = [e["digest"] for e in events if e.get("event") == "job" and e.get("stage") == "compare"]
    for digest in reversed(named):
        job = read_json(run.job(digest).job)
        if job is not None and run.job(digest).read_result() is not None:
            return dict(job["inputs"])
    return {}


def _evaluated(run: RunDir) -> list[str]:
    """All evaluate jobs of a run that never came to its comparison."""
    return sorted(path.name for path in run.jobs.iterdir()) if run.jobs.is_dir() else []


def _openings(run: RunDir, label: str, cells: Sequence[Cell]) -> list[str]:
    """Test splits that were opened more often than there are results."""
    events, _ = read_events(run.openings)
    lines = []
    for print_, dataset in {cell.test_fingerprint: cell.dataset for cell in cells}.items():
        opened = sum(event.get("dataset") == print_ for event in events)
        results = sum(cell.test_fingerprint == print_ for cell in cells)
        if opened > results:
            lines.append(f"{label} opened the test split of {dataset} {opened} times for {results} results")
    return lines

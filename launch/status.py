"""The command `vitline status`: what a run's directory says about its jobs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.errors import UserError
from pipeline.events import read_events
from pipeline.rundir import RunDir, read_json

# Of these, the first that a job has is shown.
_FIGURES = {
    "eval/top1": "test",
    "val/top1": "held-out",
    "train/loss": "loss",
    "data/train_samples": "samples",
}


def print_status(path: Path, *, as_json: bool) -> None:
    """Print the newest state of every job, in the order in which the driver planned them.

    Raises:
        UserError: `path` is no run's directory.
    """
    run = RunDir(path)
    events, _ = read_events(run.events)
    if not events:
        raise UserError(f"{path} holds no events.jsonl", "the directory of a run", "name it, as in runs/demo")
    rows = _rows(run, events)
    holder = read_json(run.lease)
    if as_json:
        print(json.dumps({"schema": 1, "run": path.name, "driver": holder, "jobs": rows}, indent=1))
        return
    driver = f"driven by process {holder['pid']} on {holder['host']}" if holder else "no driver"
    table = Table(
        "job",
        "state",
        "seconds",
        "result",
        title=f"{path.name}: {driver}",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.columns[0].no_wrap = True
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        table.add_row(row["name"], row["state"], seconds, _figure(row))
    Console().print(table)


def _rows(run: RunDir, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a job of the newest plan."""
    starts = [i for i, event in enumerate(events) if event["event"] == "run" and event["state"] == "started"]
    newest: dict[str, dict[str, Any]] = {}
    for event in events[starts[-1] if starts else 0 :]:
        if event["event"] == "job":
            newest[event["digest"]] = event
    rows = []
    for digest, event in newest.items():
        result = run.job(digest).read_result()
        state = "done" if result is not None and event["state"] in ("done", "skipped") else event["state"]
        rows.append(
            {
                "name": event["name"],
                "stage": event["stage"],
                "digest": digest,
                "state": state,
                "reason": event["reason"],
                "seconds": result["seconds"] if result else _running_s(state, event),
                "metrics": result["metrics"] if result else _last_progress(run, digest),
            }
        )
    return rows


def _running_s(state: str, event: dict[str, Any]) -> float | None:
    return time.time() - float(event["time"]) if state == "running" else None


def _last_progress(run: RunDir, digest: str) -> dict[str, Any]:
    progress = [event for event in read_events(run.job(digest).events)[0] if event["event"] == "progress"]
    return {"train/step": progress[-1]["step"], "train/loss": progress[-1]["loss"]} if progress else {}


def _figure(row: dict[str, Any]) -> str:
    """The figure that says most about a job of its kind."""
    for name, label in _FIGURES.items():
        if name in row["metrics"]:
            return f"{label} {row['metrics'][name]:,.4g}"
    return ""

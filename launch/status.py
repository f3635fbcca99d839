"""The command `vitline status`: what a run's directory says about its jobs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch.status_sums import lines, mirrored, page_of, sums
from pipeline.errors import UserError
from pipeline.events import Event, read_events
from pipeline.lease import live_holder
from pipeline.recovery import describe, recoveries
from pipeline.rundir import RunDir
from pipeline.train.goodput import goodput

# As pipeline/stages/pretrain.py names it, which brings in PyTorch.
_GANG_STAGE = "pretrain"
# Of these, the first that a job has is shown.
_FIGURES = {
    "eval/top1": "test",
    "val/top1": "held-out",
    "val/masked_accuracy": "hidden patches",
    "train/loss": "loss",
    "data/train_samples": "samples",
}


def print_status(place: str, *, as_json: bool, watch: bool = False, price: float | None = None) -> None:
    """Print the newest state of every job, in the order in which the driver planned them.

    With `watch` the table is drawn anew every two seconds, for as long as the run has a driver.

    Args:
        place: directory of a run, or the URL where its state is kept.

    Raises:
        UserError: it is none.
        EnvironmentUnfit: the store does not answer.
    """
    if "://" not in place:
        _print_status(Path(place), place, lambda: None, as_json=as_json, watch=watch, price=price)
        return
    # fsspec takes a second to import.
    from pipeline.keeping import is_status
    from pipeline.remote_state import RemoteState, look_at

    state = RemoteState(place)
    with tempfile.TemporaryDirectory(prefix="vitline-status-") as directory:
        # The run has its name from its directory.
        path = Path(directory, place.rstrip("/").rpartition("/")[2])
        path.mkdir()

        def renew() -> None:
            look_at(state, path, is_status)

        renew()
        _print_status(path, place, renew, as_json=as_json, watch=watch, price=price)


def _print_status(
    path: Path, place: str, renew: Callable[[], None], *, as_json: bool, watch: bool, price: float | None
) -> None:
    run = RunDir(path)
    if not read_events(run.events)[0]:
        raise UserError(
            f"{place} holds no events.jsonl", "the directory of a run", "name it, as in runs/demo"
        )
    holder = live_holder(run.lease)
    if as_json:
        print(json.dumps(_as_json(run, holder, price), indent=1))
        return
    console = Console()
    if not watch:
        console.print(_picture(run, holder, price))
        return
    with Live(_picture(run, holder, price), console=console, auto_refresh=False) as live:
        while holder is not None:
            time.sleep(2)
            renew()
            holder = live_holder(run.lease)
            live.update(_picture(run, holder, price), refresh=True)


def _as_json(run: RunDir, holder: dict[str, Any] | None, price: float | None) -> dict[str, Any]:
    rows, mlflow = _rows(run, alive=holder is not None), mirrored(run)
    runs = {} if mlflow is None else mlflow.pop("jobs")
    jobs = [
        {
            **row,
            "mlflow_run_id": runs.get(row["digest"]),
            "mlflow_url": None if mlflow is None else page_of(mlflow, runs.get(row["digest"])),
        }
        for row in rows
    ]
    return {
        "schema": 1,
        "run": run.path.name,
        "driver": holder,
        "mlflow": mlflow,
        "sums": sums(rows, price),
        "jobs": jobs,
    }


def _picture(run: RunDir, holder: dict[str, Any] | None, price: float | None) -> Group:
    rows, mlflow = _rows(run, alive=holder is not None), mirrored(run)
    below = [Text(line, overflow="fold") for line in lines(sums(rows, price), mlflow)]
    return Group(_table(run, holder, rows, mlflow), *below)


def _table(
    run: RunDir, holder: dict[str, Any] | None, rows: list[dict[str, Any]], mlflow: dict[str, Any] | None
) -> Table:
    driver = f"driven by process {holder['pid']} on {holder['host']}" if holder else "no driver"
    title = f"{run.path.name}: {driver}"
    table = Table("job", "state", "seconds", "result", title=title, title_justify="left", box=box.SIMPLE)
    table.columns[0].no_wrap = True
    for row in rows:
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        page = None if mlflow is None else page_of(mlflow, mlflow["jobs"].get(row["digest"]))
        # Terminals that know links make the name one.
        name = Text(row["name"], style="" if page is None else f"link {page}")
        table.add_row(name, row["state"], seconds, _figure(row))
        for recovery in recoveries(run.job(row["digest"])) if row["stage"] == _GANG_STAGE else []:
            table.add_row("", "", "", f"{row['name']}: {describe(recovery)}", style="dim")
    return table


def _rows(run: RunDir, *, alive: bool) -> list[dict[str, Any]]:
    """One row a job of the newest plan; without a living driver nothing runs."""
    events, _ = read_events(run.events)
    starts = [i for i, event in enumerate(events) if event["event"] == "run" and event["state"] == "started"]
    newest: dict[str, dict[str, Any]] = {}
    for event in events[starts[-1] if starts else 0 :]:
        if event["event"] == "job":
            newest[event["digest"]] = event
    rows = []
    for digest, event in newest.items():
        job = run.job(digest)
        result, told = job.read_result(), read_events(job.events)[0]
        state = event["state"]
        if result is not None and state == "skipped":
            state = "done"
        elif state == "running" and not alive:
            state = "interrupted"
        rows.append(
            {
                "name": event["name"],
                "stage": event["stage"],
                "digest": digest,
                "state": state,
                "reason": event["reason"],
                "seconds": result["seconds"] if result else _running_s(state, event),
                "metrics": result["metrics"] if result else _last_progress(told),
                "goodput": _goodput(told),
            }
        )
    return rows


def _running_s(state: str, event: dict[str, Any]) -> float | None:
    return time.time() - float(event["time"]) if state == "running" else None


def _last_progress(events: list[Event]) -> dict[str, Any]:
    progress = [event for event in events if event["event"] == "progress"]
    if not progress:
        return {}
    last = progress[-1]
    if "split" in last:  # of a dataset that is being written
        return {f"data/{last['split']}_samples": last["done"]}
    return {"train/step": last["step"], "train/loss": last["loss"]}


def _figure(row: dict[str, Any]) -> str:
    """The figure that says most about a job of its kind."""
    for name, label in _FIGURES.items():
        if name in row["metrics"]:
            return f"{label} {row['metrics'][name]:,.4g}{_lost(row['goodput'])}"
    return ""


def _goodput(events: list[Event]) -> dict[str, Any] | None:
    """Of a training: which share of its time was useful, and seconds lost by cause."""
    found = goodput(events)
    return None if found is None else {"share": found.share, "lost_s": found.lost_s}


def _lost(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    cause, seconds = max(found["lost_s"].items(), key=lambda item: item[1])
    return f", {found['share']:.0%} of the time useful (most lost: {cause} {seconds:.0f} s)"

"""What `vitline status` says of a run as a whole: what it has taken, and where MLflow has it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.rundir import RunDir, read_json

_HOURS = "cost/device_hours"


def sums(rows: Sequence[Mapping[str, Any]], price: float | None) -> dict[str, Any]:
    """Over the results there are; a training that goes on counts when it is done.

    Args:
        rows: of the jobs, see status.py.
        price: of one device for an hour, in any currency.
    """
    results = [row for row in rows if row["state"] == "done"]
    device_hours = sum(float(row["metrics"].get(_HOURS) or 0) for row in results)
    return {
        "jobs": len(rows),
        "done": len(results),
        "seconds": sum(float(row["seconds"] or 0) for row in results),
        "device_hours": device_hours,
        "price": None if price is None else price * device_hours,
    }


def mirrored(run: RunDir) -> dict[str, Any] | None:
    """Where MLflow has the run, as far as it was sent; None: nothing was.

    `url`: of its page, where the store is a server; `command`: what shows it otherwise; `jobs`: digest → run
    id.
    """
    try:
        saved = read_json(run.tracking)
    except ValueError:  # no JSON; the next driver begins it anew
        return None
    if saved is None or not saved["parent"]["run_id"]:
        return None
    jobs = {digest: job["run_id"] for digest, job in saved["jobs"].items() if job["run_id"]}
    store, run_id = str(saved["store"]), saved["parent"]["run_id"]
    found = {"store": store, "experiment_id": saved.get("experiment", ""), "run_id": run_id, "jobs": jobs}
    command = None if store.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(store)}"
    return {**found, "url": page_of(found, run_id), "command": command}


def page_of(mlflow: Mapping[str, Any], run_id: str | None) -> str | None:
    """URL of a run's page; None where no server shows it, or it is not there yet."""
    store, experiment = mlflow["store"], mlflow["experiment_id"]
    if not (run_id and experiment and store.startswith("http")):
        return None
    return f"{store.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def lines(found: Mapping[str, Any], mlflow: Mapping[str, Any] | None) -> list[str]:
    """For a terminal, below the table."""
    price = "" if found["price"] is None else f", {found['price']:,.2f} in all"
    text = [
        f"{found['done']} of {found['jobs']} jobs done: {found['seconds'] / 3600:,.2f} hours of jobs,"
        f" {found['device_hours']:,.3g} device-hours of training{price}"
    ]
    if mlflow is not None and mlflow["url"] is not None:
        text.append(f"MLflow: {mlflow['url']} (of each job: a click on its name, or --json)")
    elif mlflow is not None:
        text.append(f"MLflow: run {mlflow['run_id']} in {mlflow['store']} (of each job: --json)")
        if mlflow["command"] is not None:
            text.append(f"        {mlflow['command']}")
    return text

"""What `vitline status` says of a run as a whole: what it has taken, and where MLflow has it."""

from __future__ import annotations

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
    """Store, run id and the run ids of jobs by digest, as far as the run was sent; None: nothing was."""
    try:
        saved = read_json(run.tracking)
    except ValueError:  # no JSON; the next driver begins it anew
        return None
    if saved is None or not saved["parent"]["run_id"]:
        return None
    jobs = {digest: job["run_id"] for digest, job in saved["jobs"].items() if job["run_id"]}
    return {"store": saved["store"], "run_id": saved["parent"]["run_id"], "jobs": jobs}


def lines(found: Mapping[str, Any], mlflow: Mapping[str, Any] | None) -> list[str]:
    """For a terminal, below the table."""
    price = "" if found["price"] is None else f", {found['price']:,.2f} in all"
    text = [
        f"{found['done']} of {found['jobs']} jobs done: {found['seconds'] / 3600:,.2f} hours of jobs,"
        f" {found['device_hours']:,.3g} device-hours of training{price}"
    ]
    if mlflow is not None:
        text.append(f"MLflow: run {mlflow['run_id']} in {mlflow['store']} (of each job: --json)")
    return text

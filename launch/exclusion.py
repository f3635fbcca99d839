"""Nodes that a start leaves out because the preflight of an earlier one found them unfit.

    RUN/launch/doctor.json     what the last preflight found, and at which nodes
               excluded.json   all nodes that `--exclude-bad` has left out so far; remove it to have them back

A scheduler gives the same node again and again: what was left out once stays out, or a second bad node would
bring the first one back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.doctor_report import FILE_NAME
from pipeline.errors import UserError
from pipeline.rundir import read_json, write_json

EXCLUDED = "excluded.json"


def bad_nodes(report: Mapping[str, Any]) -> list[str]:
    """Nodes that a failed check of a report names; one that blames every node is no matter of nodes."""
    count = len(report["nodes"])
    failed = (check.get("at", []) for check in report["checks"] if check["level"] == "fail")
    return sorted({node for at in failed if len(at) < count for node in at})


def keep(launch: Path, nodes: Sequence[str]) -> None:
    """Remember what is left out, for the start after this one."""
    write_json(launch / EXCLUDED, {"nodes": list(nodes)})


def to_exclude(launch: Path, target: str) -> tuple[str, ...]:
    """All nodes to leave out from now on, by what lies in `launch`, which is RUN/launch.

    Raises:
        UserError: no preflight has looked at the nodes yet, or it found none at fault; or the target does
            not choose nodes.
    """
    if target not in ("slurm", "kubernetes"):
        raise UserError(
            f"--exclude-bad with {target}",
            "a target that chooses the nodes: slurm or kubernetes",
            "leave it out; take the bad node out of the Ray cluster",
        )
    report = read_json(launch / FILE_NAME)
    before: Sequence[str] = (read_json(launch / EXCLUDED) or {"nodes": []})["nodes"]
    found = [] if report is None else bad_nodes(report)
    if not found and not before:
        raise UserError(
            f"{launch / FILE_NAME} " + ("is not there" if report is None else "names no node at fault"),
            "a preflight that found nodes unfit",
            "leave --exclude-bad out; every start over several nodes looks at them",
        )
    return tuple(sorted({*before, *found}))

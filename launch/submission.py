"""`vitline launch`: render the files of a target, keep them in RUN/launch, submit, say what to type next.

    RUN/launch/FILES            as rendered, config.yaml among them
               submit.txt       the exact command that handed the run over
               submission.json  what came back
               excluded.json    nodes that `--exclude-bad` leaves out (launch/exclusion.py)

Files are written before anything is submitted, so that a missing tool costs nothing: the message names the
file and the command to type elsewhere. Nothing is deleted, nothing is asked.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from launch.exclusion import keep
from launch.targets import kubernetes, local, ray_jobs, slurm
from launch.targets.request import Rendered, Request, Submission
from pipeline.errors import Busy
from pipeline.lease import EXPIRY_S
from pipeline.rundir import RunDir, read_json, write_atomic, write_json


@dataclass(frozen=True)
class Target:
    """Two functions, and whether the command waits for the run by default."""

    render: Callable[[Request], Rendered]
    submit: Callable[[Request, Path, bool], Submission]
    waits: bool


TARGETS = {
    "local": Target(local.render, local.submit, waits=True),
    "ray": Target(ray_jobs.render, ray_jobs.submit, waits=True),
    "slurm": Target(slurm.render, slurm.submit, waits=False),
    "kubernetes": Target(kubernetes.render, kubernetes.submit, waits=False),
}


def launch(
    name: str,
    request: Request,
    *,
    render_only: bool,
    out: str | None,
    detach: bool,
    again: str,
    as_json: bool,
) -> int:
    """Put the run on the target `name`; returns the exit code.

    Args:
        render_only: write the files and stop.
        out: a directory for the files in place of RUN/launch; '-' prints the main file and writes nothing.
        again: the command line that would continue the run.

    Raises:
        EnvironmentUnfit: the tool or the cluster is not there; the files are.
        Busy: a driver runs already.
    """
    target = TARGETS[name]
    if out is not None and out != "-":
        request = replace(request, out=Path(out).resolve())
    rendered = target.render(request)
    if out == "-":
        sys.stdout.write(rendered.files[rendered.main])
        return 0
    directory = request.files
    _write(directory, rendered)
    if request.exclude:
        keep(request.launch, request.exclude)
    for note in rendered.notes:
        print(f"note: {note}", file=sys.stderr)
    if render_only:
        _print({"files": [str(directory / file) for file in rendered.files]}, as_json)
        return 0
    _refuse_second_driver(request, name)
    submission = target.submit(request, directory, detach or not target.waits)
    _keep(directory, name, submission)
    if submission.exit_code is None:
        commands = (*submission.next, ("status", f"vitline status {request.run}"), ("resume", again))
        answer = {"target": name, **submission.answer, "files": str(directory), "next": dict(commands)}
        _print(answer, as_json)
    return submission.exit_code or 0


def _write(directory: Path, rendered: Rendered) -> None:
    for file, text in rendered.files.items():
        script = text.startswith("#!")
        write_atomic(directory / file, text.encode(), mode=0o750 if script else 0o640)


def _keep(directory: Path, name: str, submission: Submission) -> None:
    write_atomic(directory / "submit.txt", (shlex.join(submission.argv) + "\n").encode())
    record = {
        "schema": 1,
        "target": name,
        "argv": list(submission.argv),
        "answer": submission.answer,
        "submitted": time.time(),
        "exit_code": submission.exit_code,
    }
    write_json(directory / "submission.json", record)


def _refuse_second_driver(request: Request, name: str) -> None:
    """A run that is driven somewhere would only refuse the second driver after its time in a queue."""
    if name in ("local", "ray"):  # the driver itself says so at once; a job on Ray is attached to
        return
    holder = read_json(RunDir(request.run).lease)
    if holder and time.time() - float(holder["heartbeat"]) < EXPIRY_S:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        raise Busy(
            f"this run is driven by process {holder['pid']} on {holder['host']} since {since}",
            "one driver a run",
            f"follow it with `vitline status {request.run}`, or stop it first",
        )


def _print(answer: dict[str, object], as_json: bool) -> None:
    """The result on stdout: an object, or one `word: value` a line."""
    if as_json:
        print(json.dumps({"schema": 1, **answer}, indent=1))
        return
    for key, value in answer.items():
        if isinstance(value, dict):
            width = max(len(word) for word in value) + 1
            for word, command in value.items():
                print(f"{word + ':':<{width}} {command}")
        elif isinstance(value, list):
            print("\n".join(str(item) for item in value))
        elif key not in ("stdout", "stderr"):
            print(f"{key}: {value}")

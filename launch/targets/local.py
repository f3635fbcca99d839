"""This machine: `vitline run` in the foreground, or detached with its output in a file."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from launch.targets.request import CONFIG, Rendered, Request, Submission, config_text

SCRIPT = "run.sh"


def render(request: Request) -> Rendered:
    argv = ["vitline", "run", str(request.files / CONFIG), *request.options]
    script = (
        "#!/bin/sh\n"
        "# Does what `vitline launch local` did; finished work is skipped.\n"
        "set -eu\n"
        f"cd {shlex.quote(str(request.directory))}\n"
        f"exec {shlex.join(argv)}\n"
    )
    return Rendered({SCRIPT: script, CONFIG: config_text(request, SCRIPT)}, SCRIPT)


def argv_of(request: Request, directory: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "launch", "run", str(directory / CONFIG), *request.options)


def submit(request: Request, directory: Path, detach: bool) -> Submission:
    """Run it. In the foreground Ctrl-C and signals reach the run itself, which stops in order."""
    argv = argv_of(request, directory)
    if not detach:
        child = subprocess.Popen(argv, cwd=request.directory)
        return Submission(argv, {"pid": child.pid}, exit_code=_wait(child))
    log = directory / "local.log"
    with log.open("ab") as file:
        child = subprocess.Popen(
            argv,
            cwd=request.directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    follow = (("log", f"tail -F {shlex.quote(str(log))}"), ("stop", f"kill -TERM {child.pid}"))
    return Submission(argv, {"pid": child.pid, "host": os.uname().nodename}, follow)


def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the child too, which now saves and ends.
            continue

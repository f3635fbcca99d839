"""A Ray cluster that runs already: the driver becomes a job of it, through Ray's Jobs API.

The submission id follows from the run, so it is our key: a job of this run that is alive is attached to,
one that ended is followed by the next attempt. Ray's own command line exits with 1 for every fault and its
log stream may end before the job does; so the state is polled, the log is fetched whole and printed from
where it was, and the driver's own exit code is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launch.targets.request import CONFIG, Rendered, Request, Submission, config_text
from pipeline.errors import EnvironmentUnfit

SCRIPT = "submit.sh"
_POLL_S = 2.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# A cluster that answers nothing for this long is lost; the job may live, and the same command finds it again.
_SILENCE_S = 300.0


def render(request: Request) -> Rendered:
    """The configuration, and a script that does the same with Ray's own command line."""
    ray = request.cluster.ray
    submit_id = f"{base_id(request)}-a1"
    argv = [
        *("ray", "job", "submit", f"--address={ray.dashboard}", f"--submission-id={submit_id}", "--no-wait"),
        f"--entrypoint-num-cpus={ray.driver_cpus:g}",
        "--",
        *entrypoint(request),
    ]
    text = (
        "#!/bin/sh\n"
        "# What `vitline launch ray` does, for a machine with Ray alone. The cluster must see these paths.\n"
        "set -eu\n"
        "export RAY_AUTH_MODE=token\n"
        f"exec {shlex.join(argv)}\n"
    )
    return Rendered({SCRIPT: text, CONFIG: config_text(request, SCRIPT)}, SCRIPT)


def entrypoint(request: Request) -> list[str]:
    """The driver's command line on the cluster; `env` sets the directory without a shell."""
    return [
        "env",
        f"--chdir={request.directory}",
        "vitline",
        "run",
        str(request.files / CONFIG),
        "--address",
        "auto",
        *request.options,
    ]


def base_id(request: Request) -> str:
    """`vitline-RUN-HASH`; the hash is of the run's place, so that equal names do not meet."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", request.config.name)
    return f"vitline-{name}-{hashlib.sha256(str(request.run).encode()).hexdigest()[:8]}"


def choose_id(base: str, states: Mapping[str, str]) -> tuple[str, bool]:
    """The submission id to use and whether it is alive already.

    Args:
        base: of `base_id`.
        states: all jobs of the cluster, submission id → state.
    """
    pattern = re.compile(rf"^{re.escape(base)}-a(\d+)$")
    numbers = {int(match.group(1)): name for name in states if (match := pattern.match(name))}
    if not numbers:
        return f"{base}-a1", False
    newest = max(numbers)
    if states[numbers[newest]] not in _ENDED:
        return numbers[newest], True
    return f"{base}-a{newest + 1}", False


def submit(request: Request, directory: Path, detach: bool) -> Submission:
    """Submit or attach, and follow the job unless `detach`.

    Raises:
        EnvironmentUnfit: no dashboard there, or it refuses the token.
    """
    client = _connect(request, directory)
    base = base_id(request)
    states = {job.submission_id: str(job.status.value) for job in client.list_jobs() if job.submission_id}
    name, alive = choose_id(base, states)
    argv = entrypoint(request)
    if not alive:
        name = _submit(client, name, argv, request)
    print(f"{'attached to' if alive else 'submitted'} {name}", file=sys.stderr)
    url = request.cluster.ray.dashboard
    commands = tuple(
        (word, f"ray job {verb} --address={url} {name}")
        for word, verb in (("log", "logs --follow"), ("state", "status"), ("stop", "stop"))
    )
    code = None
    if not detach:
        try:
            code = _follow(client, name)
        except KeyboardInterrupt:
            print("detached: the job goes on", file=sys.stderr)
    return Submission(tuple(argv), {"job": name, "attached": alive}, commands, exit_code=code)


def _submit(client: Any, name: str, argv: list[str], request: Request) -> str:
    environment = {"NCCL_DEBUG": "WARN", **request.cluster.environment}
    try:
        return str(
            client.submit_job(
                entrypoint=shlex.join(argv),
                submission_id=name,
                entrypoint_num_cpus=request.cluster.ray.driver_cpus,
                runtime_env={"env_vars": environment},
                metadata={"vitline.run": request.config.name},
            )
        )
    except RuntimeError as error:
        if "already exists" in str(error):  # somebody else was faster with the same run
            return name
        raise EnvironmentUnfit(
            f"the cluster refused the job: {str(error).splitlines()[-1]}",
            "a cluster that takes jobs",
            f"see the dashboard at {request.cluster.ray.dashboard}",
        ) from None


def _connect(request: Request, directory: Path) -> Any:
    ray = request.cluster.ray
    token = ray.token_file or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(Path(token).expanduser())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Only now: importing Ray reads the environment.
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(ray.dashboard.rstrip("/"))
    except (ConnectionError, RuntimeError, ValueError, OSError, AuthenticationError) as error:
        raise EnvironmentUnfit(
            f"{ray.dashboard} does not take jobs: {_first_line(error)}; {directory / SCRIPT} is written",
            "the dashboard of a running cluster, and its token",
            _hint(isinstance(error, AuthenticationError), ray.dashboard, token),
        ) from None


def _hint(refused: bool, url: str, token: str | None) -> str:
    if refused:
        return (
            f"{token} is another cluster's token, or out of date: name this one's in ray.token_file"
            if token
            else "the cluster wants a token: name its file in ray.token_file of the cluster file"
        )
    port = urlsplit(url).port
    return f"check the URL; through a tunnel: ssh -N -L {port}:127.0.0.1:{port} HEAD"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _follow(client: Any, name: str) -> int:
    """Print the job's log until it has ended; its driver's exit code."""
    printed = 0
    heard = time.monotonic()
    while True:
        try:
            info = client.get_job_info(name)
            log = client.get_job_logs(name)
            heard = time.monotonic()
        except (ConnectionError, RuntimeError, OSError) as error:
            if time.monotonic() - heard > _SILENCE_S:
                raise EnvironmentUnfit(
                    f"the cluster has not answered for {_SILENCE_S:.0f} s: {_first_line(error)}",
                    "a dashboard that answers",
                    "run the same command again: it attaches to the job if that lives",
                ) from None
            time.sleep(_POLL_S)
            continue
        sys.stderr.write(log[printed:])
        sys.stderr.flush()
        printed = len(log)
        if str(info.status.value) in _ENDED:
            return exit_code(str(info.status.value), info.driver_exit_code)
        time.sleep(_POLL_S)


def exit_code(state: str, driver: int | None) -> int:
    """Ours for a job that ended: the driver's own where there is one."""
    if state == "SUCCEEDED":
        return 0
    if driver is not None and driver > 0:
        return driver
    # Stopped, killed, or never started: what was done is kept, and another try continues.
    return 75 if state == "STOPPED" or driver is not None else EnvironmentUnfit.exit_code

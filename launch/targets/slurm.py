"""Slurm: one batch job whose nodes each run `vitline node` (launch/node.py).

    sbatch job.sbatch ──► batch shell on the first node ──► srun, one task a node: vitline node
        USR1 from Slurm, `signal_s` before the limit ──► the batch shell leaves a file, `stop`
        the head sees it and tells the driver, which saves and ends with 75
        75 ──► the batch shell asks Slurm to requeue the job, at most `max_requeues` times
        TERM to the batch shell (a person's stop) ──► the same, without a requeue of our own

A file, because Slurm hands a signal for a task to every process below it, and Ray's die of USR1.
What decides is the file in which the head leaves the driver's exit code: with --kill-on-bad-exit srun's own
code may be that of a task that Slurm killed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from launch.targets.request import CONFIG, Rendered, Request, Submission, config_text
from pipeline.errors import EnvironmentUnfit, UserError

SCRIPT = "job.sbatch"
_EXCLUDE = "--exclude="
# What sbatch says where no controller has seen the job.
_UNREACHED = re.compile("contact slurm controller|controller not responding|configuration source", re.I)
# Slurm reads directives before any shell does: no quotes, and % is a placeholder of its own.
_PATH = re.compile(r"^[A-Za-z0-9/._@+=:,~-]+$")

_BODY = """\
set -u
umask 027
launch={launch}
# One directory for each start of the job: where its nodes meet and the head leaves the exit code.
attempt="$launch/slurm-$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"
requeues="$launch/slurm-$SLURM_JOB_ID.requeues"
mkdir -p "$attempt"
# The token is a file that only its owner can read; its value is in no environment and no argument.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH="$launch/cluster_token"
{environment}
{setup}
# Inside a container there is no scontrol, so the names are resolved here.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | paste -sd, -)

# A signal is passed on as a file: srun would hand it to every process of a task, and Ray's die of it.
# `caught` tells an interrupted wait from the end of the task.
caught=0
cancelled=0
trap 'caught=1; echo USR1 >"$attempt/stop"' USR1
trap 'caught=1; cancelled=1; echo TERM >"$attempt/stop"' TERM

{srun} &
task=$!
while :; do
  caught=0
  wait "$task"
  code=$?
  [ "$caught" = 1 ] || break
done
if [ -s "$attempt/exit_code" ]; then
  code=$(cat "$attempt/exit_code")
fi
echo "vitline: exit code $code"

if [ "$code" = 75 ] && [ "$cancelled" = 0 ]; then
  touch "$requeues"
  if [ "$(wc -l <"$requeues")" -lt {max_requeues} ]; then
    date >>"$requeues"
    # Slurm ends this script with the requeue.
    scontrol requeue "$SLURM_JOB_ID" && sleep 120
  else
    echo "vitline: requeued {max_requeues} times already; submit again to continue"
  fi
fi
exit "$code"
"""


def render(request: Request) -> Rendered:
    """job.sbatch and the configuration it names.

    Raises:
        UserError: a path that Slurm's directives cannot hold.
    """
    lines = [
        "#!/bin/bash",
        "# Written by `vitline launch slurm`. Edit and submit it as you like: the run continues.",
    ]
    lines += [f"#SBATCH {directive}" for directive in directives(request)]
    environment = {"NCCL_DEBUG": "WARN", **request.cluster.environment}
    body = _BODY.format(
        launch=shlex.quote(str(request.launch)),
        environment="\n".join(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        setup="\n".join(request.cluster.slurm.setup) or ":",
        srun=_srun(request),
        max_requeues=request.cluster.slurm.max_requeues,
    )
    files = {SCRIPT: "\n".join(lines) + "\n\n" + body, CONFIG: config_text(request, SCRIPT)}
    return Rendered(files, SCRIPT)


def directives(request: Request) -> list[str]:
    """What follows `#SBATCH `, one a line."""
    slurm = request.cluster.slurm
    for path in (request.directory, request.launch):
        if not _PATH.match(str(path)):
            raise UserError(
                f"the path {str(path)!r}",
                "letters, digits and /._@+=:,~- only: Slurm's directives know no quotes",
                "move the run (root:) or the working directory",
            )
    cpus = request.cluster.cpus_per_node
    optional = {
        "--partition": slurm.partition,
        "--account": slurm.account,
        "--qos": slurm.qos,
        "--gpus-per-node": request.gpus_per_node or None,
        "--cpus-per-task": cpus,
    }
    return [
        f"--job-name=vitline-{request.config.name}",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        *[f"{name}={value}" for name, value in optional.items() if value is not None],
        *(["--exclusive"] if slurm.exclusive else []),
        f"--time={slurm.time}",
        "--requeue",
        # Slurm would end the whole job with the first node it loses.
        *(["--no-kill"] if request.min_nodes < request.nodes else []),
        "--open-mode=append",
        f"--signal=B:USR1@{slurm.signal_s}",
        f"--chdir={request.directory}",
        f"--output={request.launch}/slurm-%j.log",
        *_extra(request),
    ]


def _extra(request: Request) -> list[str]:
    """The site's own directives, with the nodes to leave out joined to theirs: of two lines one counts."""
    given = request.cluster.slurm.extra
    if not request.exclude:
        return list(given)
    theirs = [line.removeprefix(_EXCLUDE) for line in given if line.startswith(_EXCLUDE)]
    rest = [line for line in given if not line.startswith(_EXCLUDE)]
    return [*rest, _EXCLUDE + ",".join([*theirs, *request.exclude])]


def _srun(request: Request) -> str:
    """srun's command line over several lines; all but the shell's variables is quoted."""
    cpus = request.cluster.cpus_per_node
    shrinks = request.min_nodes < request.nodes
    srun = [
        "srun",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        # Since Slurm 22.05 srun does not take this over from the job.
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        # Otherwise a task, and with it all of Ray's processes, may be held to one core.
        "--cpu-bind=none",
        *(["--no-kill", "--kill-on-bad-exit=0"] if shrinks else ["--kill-on-bad-exit=1"]),
    ]
    command = [*_container(request), request.cluster.slurm.command, "node", str(request.files / CONFIG)]
    options = [
        "--role=auto",
        f"--nodes={request.nodes}",
        *([f"--min-nodes={request.min_nodes}"] if shrinks else []),
        *([f"--cpus={cpus}"] if cpus else []),
        f"--gpus={request.gpus_per_node}",
        f"--join-timeout={request.cluster.join_timeout_s}",
        *([f"--preflight={request.cluster.preflight}"] if request.nodes > 1 else []),
        *request.stop_options,
    ]
    lines = [shlex.join(srun), shlex.join(command), shlex.join(options), '--meet="$attempt" --hosts="$hosts"']
    return " \\\n  ".join(lines)


def _container(request: Request) -> list[str]:
    container = request.cluster.slurm.container
    if container is None:
        return []
    inside = request.run.is_relative_to(request.directory)
    mounts = [str(request.directory), *([] if inside else [str(request.run)]), *container.mounts]
    if container.runtime == "pyxis":
        return [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(f'{path}:{path}' for path in mounts)}",
            f"--container-workdir={request.directory}",
        ]
    binds = [f"--bind={path}" for path in mounts]
    gpu = ["--nv"] if request.gpus_per_node else []
    return ["apptainer", "exec", *gpu, *binds, f"--pwd={request.directory}", container.image]


def submit(request: Request, directory: Path, detach: bool) -> Submission:
    """Hand the script to sbatch.

    Raises:
        EnvironmentUnfit: no sbatch here, no controller that answers, or one that refuses the job; the
            message says what to type elsewhere.
    """
    script = directory / SCRIPT
    argv = ("sbatch", "--parsable", str(script))
    if shutil.which("sbatch") is None:
        raise EnvironmentUnfit(
            f"no sbatch on this machine; {script} is written",
            "a login node of the cluster",
            f"there, type: {shlex.join(argv)}",
        )
    # Slurm does not make the directory of the job's log, and says nothing when it is not there.
    request.launch.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        if any(_UNREACHED.search(line) for line in said):
            raise EnvironmentUnfit(
                f"no Slurm controller answers here ({said[-1]}); {script} is written",
                "a login node of the cluster, and a controller that is up",
                f"see what `sinfo` says; then, or elsewhere, type: {shlex.join(argv)}",
            )
        raise EnvironmentUnfit(
            f"sbatch refused {script}: {'; '.join(said)}",
            "a job that the site accepts",
            "set partition, account or extra in the cluster file, or edit the script and submit it",
        )
    # `--parsable` prints ID or ID;CLUSTER.
    job = done.stdout.strip().split(";")[0]
    log = request.launch / f"slurm-{job}.log"
    commands = (
        ("log", f"tail -F {log}"),
        ("queue", f"squeue --job {job}"),
        # To the batch shell alone, which passes it on and does not requeue.
        ("stop", f"scancel --batch --signal=TERM {job}"),
        ("stop now", f"scancel {job}"),
    )
    return Submission(argv, {"job": job, "stdout": done.stdout, "stderr": done.stderr}, commands)

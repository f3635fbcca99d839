"""The commands `vitline launch` and `vitline node`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Json, Overrides


class TargetName(StrEnum):
    """Where a run can be put."""

    local = "local"
    ray = "ray"
    slurm = "slurm"
    kubernetes = "kubernetes"


class Preflight(StrEnum):
    """How much `vitline doctor` looks at before the run."""

    full = "full"
    quick = "quick"
    off = "off"


class Role(StrEnum):
    """What a node is in its cluster."""

    auto = "auto"
    head = "head"
    worker = "worker"


StopAfter = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="of the driver, as 3h50m: it saves and ends with 75 then"),
]


def register(app: typer.Typer) -> None:
    """Add both commands to the command line."""
    app.command("launch")(launch)
    app.command("node")(node)


def launch(
    target: Annotated[TargetName, typer.Argument(help="where to run")],
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="default: as many as the gang needs")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=0, help="default: the cluster file's")] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="settings of the cluster, as configs/clusters/slurm.yaml"),
    ] = None,
    render_only: Annotated[
        bool, typer.Option("--render-only", "--dry-run", help="write the files, submit nothing")
    ] = False,
    out: Annotated[
        str | None,
        typer.Option(metavar="DIR|-", help="where the files go, default RUN/launch; '-' prints the main one"),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the run (local, ray)")] = False,
    exclude_bad: Annotated[
        bool,
        typer.Option(
            "--exclude-bad", help="leave out nodes that a preflight found unfit (slurm, kubernetes)"
        ),
    ] = False,
    stop_after: StopAfter = None,
    as_json: Json = False,
) -> None:
    """Put a run on this machine, a Ray cluster, Slurm or Kubernetes; the same command continues it.

    Example: vitline launch slurm configs/demo.yaml --nodes 4 --cluster configs/clusters/slurm.yaml
    """
    from launch.cluster_config import load_cluster
    from launch.exclusion import to_exclude
    from launch.stop_after import span_s
    from launch.submission import launch as put
    from launch.targets.request import make_request
    from pipeline.config_io import load_config

    if stop_after is not None:
        span_s(stop_after)  # a fault is said here, and not by the driver on the cluster
    request = make_request(
        load_config(config, overrides or []),
        load_cluster(cluster),
        Path.cwd(),
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        stop_after=stop_after,
    )
    if exclude_bad:
        request = replace(request, exclude=to_exclude(request.launch, target.value))
    code = put(
        target.value,
        request,
        render_only=render_only,
        out=out,
        detach=detach,
        again=shlex.join(["vitline", *sys.argv[1:]]),
        as_json=as_json,
    )
    raise typer.Exit(code)


def node(
    config: Config,
    overrides: Overrides = None,
    role: Annotated[Role, typer.Option(help="auto: node 0 is the head")] = Role.auto,
    nodes: Annotated[int, typer.Option(min=1, help="of the whole cluster", envvar="SLURM_JOB_NUM_NODES")] = 1,
    min_nodes: Annotated[
        int | None, typer.Option(min=1, help="go on while so many are alive; default: all")
    ] = None,
    index: Annotated[int, typer.Option(min=0, help="of this node", envvar="SLURM_NODEID")] = 0,
    job: Annotated[
        str, typer.Option(help="name of this start; ports follow from it", envvar="SLURM_JOB_ID")
    ] = "",
    hosts: Annotated[str, typer.Option(help="all nodes, the head first, with commas between")] = "",
    meet: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="on shared storage, new for each start; default RUN/launch/JOB"),
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=0, help="that Ray may use here; default: Ray looks")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="that Ray may use here; default: Ray looks")] = None,
    preflight: Annotated[
        Preflight | None, typer.Option(help="checks of all nodes before the run; default: quick with several")
    ] = None,
    join_timeout: Annotated[float, typer.Option(min=1, help="seconds until all nodes are there")] = 600,
    stop_after: StopAfter = None,
) -> None:
    """Be one node of a cluster made for this run; node 0 drives it. Every node runs the same command.

    Example: srun --ntasks-per-node=1 vitline node configs/demo.yaml --meet runs/demo/launch/try-1
    """
    from launch.node import run_node
    from launch.node_meet import Node
    from pipeline.config_io import load_config
    from pipeline.driver import run_dir_of
    from pipeline.errors import UserError

    if role is not Role.auto and (role is Role.head) != (index == 0):
        raise UserError(f"--role {role.value} with --index {index}", "node 0 as head", "leave --role out")
    if not job and nodes > 1:
        raise UserError("no --job", "one name for this start, the same on all nodes", "give --job")
    # The checks come before the driver: see `preflight` below.
    options = ["--preflight=off", *([] if stop_after is None else [f"--stop-after={stop_after}"])]
    run = run_dir_of(load_config(config, overrides or [])).path.resolve()
    started = Node(
        preflight=_preflight(
            preflight or (Preflight.quick if nodes > 1 else Preflight.off), config, overrides
        ),
        driver=(sys.executable, "-m", "launch", "run", str(config), *(overrides or []), *options),
        launch=run / "launch",
        meet=(meet or run / "launch" / f"node-{job or 'here'}").resolve(),
        job=job or f"here-{run}",
        index=index,
        nodes=nodes,
        min_nodes=min(min_nodes or nodes, nodes),
        hosts=tuple(host for host in hosts.split(",") if host),
        cpus=cpus,
        gpus=gpus,
        join_timeout_s=join_timeout,
    )
    raise typer.Exit(run_node(started))


def _preflight(extent: Preflight, config: Path, overrides: list[str] | None) -> tuple[str, ...]:
    """Command line of the checks; the address is added when the cluster is there."""
    if extent is Preflight.off:
        return ()
    quick = ("--quick",) if extent is Preflight.quick else ()
    return (sys.executable, "-m", "launch", "doctor", str(config), *(overrides or []), *quick)

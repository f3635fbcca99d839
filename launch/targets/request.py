"""What every target gets (`Request`) and gives back (`Rendered`, `Submission`).

A request is checked here against the size of the cluster, so that what can never fit is refused before
anything waits in a queue.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.cluster_config import ClusterConfig
from pipeline.config import RunConfig
from pipeline.config_io import dump_config, flatten
from pipeline.errors import ConfigError, UserError

CONFIG = "config.yaml"
_CREDENTIALS = re.compile(r"://[^/\s@]+:[^/\s@]+@")


@dataclass(frozen=True)
class Request:
    """One run on one cluster."""

    config: RunConfig
    cluster: ClusterConfig
    nodes: int
    # Fewer cannot go on; equal to `nodes` unless the gang may shrink (pretrain.gang.min_workers).
    min_nodes: int
    gpus_per_node: int
    # Absolute; relative paths of the configuration count from it, on every node.
    directory: Path
    # Where the rendered files go; None: RUN/launch.
    out: Path | None = None
    # `--stop-after` of the driver; None: it stops when all is done.
    stop_after: str | None = None
    # Nodes that the scheduler must not give, by its own names.
    exclude: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        """The run's directory, absolute."""
        return self.directory / self.config.root / self.config.name

    @property
    def launch(self) -> Path:
        """RUN/launch: logs, and where nodes meet."""
        return self.run / "launch"

    @property
    def files(self) -> Path:
        """Directory of the rendered files."""
        return self.out or self.launch

    @property
    def stop_options(self) -> list[str]:
        return [] if self.stop_after is None else [f"--stop-after={self.stop_after}"]

    @property
    def options(self) -> list[str]:
        """Options of `vitline run` that are no settings of the run."""
        extent = self.cluster.preflight
        return [*([] if extent == "quick" else [f"--preflight={extent}"]), *self.stop_options]


@dataclass(frozen=True)
class Rendered:
    """Files of a target: name → text. `main` is the one a person would read."""

    files: Mapping[str, str]
    main: str
    # What the person should know, one sentence each.
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Submission:
    """What came back, and what to type next."""

    argv: tuple[str, ...]
    answer: dict[str, Any]
    # (what it is for, command)
    next: tuple[tuple[str, str], ...] = ()
    # Exit code of a run that was waited for; None: it goes on elsewhere.
    exit_code: int | None = None
    environment: dict[str, str] = field(default_factory=dict)


def make_request(
    config: RunConfig,
    cluster: ClusterConfig,
    directory: Path,
    *,
    nodes: int | None,
    gpus_per_node: int | None,
    stop_after: str | None = None,
) -> Request:
    """The request, with the number of nodes filled in.

    Args:
        directory: from which relative paths of the configuration count.
        nodes: None takes the cluster file's, or else as many as the gang needs.
        gpus_per_node: None takes the cluster file's.
        stop_after: of the driver, as `3h50m`.

    Raises:
        UserError: the run needs more, or other nodes, than these.
        ConfigError: the configuration holds a password, which would be written into files.
    """
    _refuse_credentials(config)
    gpus = cluster.gpus_per_node if gpus_per_node is None else gpus_per_node
    gang = config.pretrain.gang
    per_node, why = _workers_per_node(config, cluster, gpus)
    count = nodes or cluster.nodes or (math.ceil(gang.workers / per_node) if per_node else 1)
    least = gang.min_workers or gang.workers
    needed = math.ceil(least / per_node) if per_node else 1
    if count < needed:
        raise UserError(
            f"pre-training has at least {least} ranks, {count} nodes hold {count * per_node} of them: {why}",
            f"at least {needed} nodes",
            f"give --nodes {needed}, or lower pretrain.gang.workers to {count * per_node}",
        )
    shrinks = gang.min_workers is not None and bool(per_node)
    least_nodes = needed if shrinks else count
    return Request(config, cluster, count, least_nodes, gpus, directory.resolve(), stop_after=stop_after)


def _workers_per_node(config: RunConfig, cluster: ClusterConfig, gpus: int) -> tuple[int, str]:
    """Ranks that fit on a node, 0 where nothing limits them; and what does."""
    gang = config.pretrain.gang
    limits = []
    if gang.gpus_per_worker:
        limits.append((int(gpus / gang.gpus_per_worker), f"{gang.gpus_per_worker:g} GPUs", f"{gpus} GPUs"))
    if cluster.cpus_per_node:
        limit = int(cluster.cpus_per_node / gang.cpus_per_worker)
        limits.append((limit, f"{gang.cpus_per_worker:g} CPUs", f"{cluster.cpus_per_node} CPUs"))
    if not limits:
        return 0, ""
    for limit, need, have in limits:
        if limit == 0:
            raise UserError(
                f"a rank needs {need}, a node has {have}",
                "nodes that hold a rank",
                "give --gpus-per-node or --cluster FILE, or change pretrain.gang",
            )
    limit, need, have = min(limits)
    return limit, f"each needs {need}, a node has {have}"


def _refuse_credentials(config: RunConfig) -> None:
    for key, value in flatten(config.model_dump(mode="json")):
        if isinstance(value, str) and _CREDENTIALS.search(value):
            raise ConfigError(
                f"{key} holds a user and a password in its URL",
                "a URL without them: the configuration is written into files that others may read",
                "take them out; give them by environment, as MLFLOW_TRACKING_USERNAME and _PASSWORD",
            )


def config_text(request: Request, where: str) -> str:
    """The resolved configuration as a file; `where` says in its head who reads it."""
    return f"# Every setting of the run, overrides included; read by {where}.\n{dump_config(request.config)}"

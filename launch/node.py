"""`vitline node`: the same command on every node makes them one Ray cluster and runs the driver on it.

    head (index 0)                                   worker (index 1 …)
      token, `ray start --head`                        waits for MEET/head.json
      MEET/head.json: its address                      `ray start --address`
      waits until N nodes are alive                    waits
      `vitline run CONFIG --address …` as a child
      MEET/exit_code: the driver's exit code  ───────► ends with the same code
    each ends only the processes that it started

MEET is a directory on shared storage, one for each start of a job. Nothing is tried for ever: a node that
does not join, a head that does not appear and a Ray that ends too early each have their message and code.
What is lost after the driver started (a worker, Ray's head) ends with 75: the same job continues the run. A
worker that gets SIGTERM has what runs on it save and move before it ends (launch/node_worker.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launch import node_ray
from launch.node_head import run_head
from launch.node_meet import Node, Signals
from launch.node_worker import run_worker
from pipeline.errors import UserError

_LEFTOVERS = (
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_IB_DISABLE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "CUDA_LAUNCH_BLOCKING",
    "TORCH_DISTRIBUTED_DEBUG",
)


def run_node(node: Node) -> int:
    """Be this node of the cluster until the driver has ended; returns the driver's exit code.

    Raises:
        EnvironmentUnfit: Ray did not start, or the nodes did not find each other in time.
        UserError: the place was used by an earlier start.
        StopRequested: a signal came before the driver was started.
    """
    node.meet.mkdir(parents=True, exist_ok=True)
    if node.index == 0:
        _begin_anew(node)
        _warn_of_leftovers()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(node.launch / "cluster_token"))
    with Signals(node.meet / "stop") as signals, _temp_dir(node) as temp:
        return run_head(node, signals, temp) if node.index == 0 else run_worker(node, signals, temp)


def _begin_anew(node: Node) -> None:
    """An earlier start's files would end this one at once."""
    if node.nodes > 1 and (node.meet / "exit_code").exists():
        raise UserError(
            f"{node.meet} holds the end of an earlier start",
            "a new place for each start, the same on all nodes",
            "give another --job or --meet",
        )
    for name in ("exit_code", "stop", "alive.json", "head.json"):
        (node.meet / name).unlink(missing_ok=True)


def _warn_of_leftovers() -> None:
    """Switches for debugging NCCL and CUDA cost much speed, and are easily left in a shell's profile."""
    found = [f"{name}={os.environ[name]}" for name in _LEFTOVERS if name in os.environ]
    if os.environ.get("NCCL_DEBUG") in ("INFO", "TRACE"):
        found.append(f"NCCL_DEBUG={os.environ['NCCL_DEBUG']}")
    if found:
        print(f"vitline node: for debugging only, and slow: {', '.join(found)}", file=sys.stderr)


@contextmanager
def _temp_dir(node: Node) -> Iterator[Path]:
    temp = node_ray.make_temp_dir(node.job)
    try:
        yield temp
    finally:
        node_ray.remove_temp_dir(temp)

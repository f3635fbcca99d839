"""A worker of `vitline node`: finds the head, joins its Ray, ends with the head's exit code.

SIGTERM or SIGINT means that this node has to go: Ray is told, so that what runs here saves and goes on
elsewhere. Then the worker ends by itself where the run can do with fewer nodes, else with the head.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path

from launch import node_ray
from launch.node_head import LOST_GRACE_S
from launch.node_meet import POLL_S, Node, Signals, stop_before_start, verdict
from launch.node_ray import Child
from pipeline.errors import EnvironmentUnfit, StopRequested
from pipeline.rundir import read_json, write_json

# How long a worker whose Ray has ended waits for the head's verdict.
_VERDICT_S = LOST_GRACE_S + 60.0
# Ray asks the head before it ends, which may be gone by now.
_RAY_STOP_S = 5.0
# How long it waits for the head to clear up once it has its verdict.
_HEAD_GONE_S = 20.0


def run_worker(node: Node, signals: Signals, temp: Path) -> int:
    address = _find_head(node, signals)
    if isinstance(address, int):
        return address
    write_json(node.meet / f"worker-{node.index:05d}.json", {"host": socket.gethostname()})
    ip = node_ray.address_towards(address.rpartition(":")[0])
    resources = node_ray.resource_arguments(node.cpus, node.gpus)
    ray = node_ray.start_worker(address, ip, node.job, temp, node.log, resources)
    try:
        code = _follow_head(node, signals, ray)
    finally:
        ray.stop(_RAY_STOP_S)
    # The head goes first: srun ends all other tasks with the first that fails.
    deadline = time.monotonic() + _HEAD_GONE_S
    while node_ray.answers(address) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return code


def _find_head(node: Node, signals: Signals) -> str | int:
    """The head's address; or its exit code, when it ended before this node came."""
    deadline = time.monotonic() + node.join_timeout_s
    while time.monotonic() < deadline:
        stop_before_start(signals)
        if (code := verdict(node)) is not None:
            return code
        head = read_json(node.meet / "head.json")
        if head and node_ray.answers(str(head["address"])):
            return str(head["address"])
        time.sleep(POLL_S)
    head = read_json(node.meet / "head.json")
    raise EnvironmentUnfit(
        f"{head['address']} does not answer from here" if head else f"no {node.meet / 'head.json'} appeared",
        f"a head within {node.join_timeout_s:.0f} s, and {node.meet} on storage that all nodes share",
        "see the head's log; raise join_timeout_s, or open the ports between the nodes",
    )


def _follow_head(node: Node, signals: Signals, ray: Child) -> int:
    """Until the head says how it ended, or cannot say so any more."""
    deadline: float | None = None
    asked = 0
    while True:
        if (code := verdict(node)) is not None:
            return code
        # USR1 is for the driver. TERM too, but it may be this node alone that has to go.
        asked += sum(number != signal.SIGUSR1 for number in signals.take())
        if deadline is None and (asked or ray.poll() is not None):
            deadline = time.monotonic() + _VERDICT_S
            if asked:
                print("vitline node: this node has to go; what runs on it saves first", file=sys.stderr)
                ray.send(signal.SIGTERM)
            else:
                print(f"vitline node: Ray ended on this node:\n{ray.tail()}", file=sys.stderr)
        if asked and ray.poll() is not None and node.min_nodes < node.nodes:
            return StopRequested.exit_code
        if asked > 1 or (deadline is not None and time.monotonic() > deadline):
            return StopRequested.exit_code
        time.sleep(POLL_S)

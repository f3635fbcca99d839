"""Where the nodes of one start meet: a directory on shared storage, and what each file in it says.

MEET/head.json            address of Ray's head; written once it answers
     worker-00001.json    this node has found the head
     alive.json           how many nodes Ray counts (launch/node_watch.py)
     ray-00000.log        of each node's `ray start`
     stop                 somebody, as a batch shell, asks the run to stop in order
     exit_code            the driver's; the signal for all nodes to end
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.node_ray import Child
from pipeline.errors import EnvironmentUnfit, StopRequested
from pipeline.rundir import read_json, write_atomic, write_json

POLL_S = 0.5


@dataclass(frozen=True)
class Node:
    """What one node knows at its start."""

    driver: tuple[str, ...]  # command line of the driver; the cluster's address is added to it
    preflight: tuple[str, ...]  # the same, of the checks before it; empty for none
    meet: Path
    job: str
    index: int
    nodes: int
    min_nodes: int  # with fewer the run cannot go on
    hosts: tuple[str, ...]  # names of all nodes, the head first; may be empty for one node
    cpus: int | None
    gpus: int | None
    join_timeout_s: float
    launch: Path  # RUN/launch

    @property
    def log(self) -> Path:
        return self.meet / f"ray-{self.index:05d}.log"


class Signals:
    """Which signals have come, MEET/stop among them: the loops look, nothing happens inside a handler."""

    def __init__(self, stop_file: Path) -> None:
        self._file: Path | None = stop_file
        self._new: list[int] = []
        self.stop = False

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, frame: object) -> None:
        self._new.append(number)
        self.stop = True

    def take(self) -> list[int]:
        """Those since the last call."""
        if self._file is not None and self._file.exists():
            self._file = None
            self._note(signal.SIGUSR1, None)
        taken, self._new = self._new, []
        return taken


def write_exit(node: Node, code: int, reason: str) -> None:
    """MEET/exit_code for nodes and shells, RUN/launch/exit.json for people and programs."""
    outcome = {
        "schema": 1,
        "exit_code": code,
        "reason": reason or None,
        "job": node.job,
        "host": socket.gethostname(),
        "finished": time.time(),
    }
    write_json(node.launch / "exit.json", outcome)
    write_atomic(node.meet / "exit_code", f"{code}\n".encode())


def alive_file(node: Node) -> Path:
    return node.meet / "alive.json"


def alive(node: Node) -> int:
    return int((read_json(alive_file(node)) or {"alive": 0})["alive"])


def verdict(node: Node) -> int | None:
    """The head's exit code, once it has one."""
    try:
        return int((node.meet / "exit_code").read_text())
    except (FileNotFoundError, ValueError):
        return None


def wait_until(
    node: Node, signals: Signals, ready: Callable[[], bool], ray: Child, what: str, *, missing: bool = False
) -> None:
    """Until `ready`, at most the time to join."""
    deadline = time.monotonic() + node.join_timeout_s
    while not ready():
        stop_before_start(signals)
        if ray.poll() is not None:
            raise EnvironmentUnfit(
                f"`ray start` ended with {ray.poll()}:\n{ray.tail()}", "a Ray that runs", f"see {node.log}"
            )
        if time.monotonic() > deadline:
            raise EnvironmentUnfit(
                _who_is_missing(node) if missing else what,
                f"all {node.nodes} nodes within {node.join_timeout_s:.0f} s",
                f"see {node.meet}/ray-*.log on those nodes; raise join_timeout_s if they were only slow",
            )
        time.sleep(POLL_S)


def _who_is_missing(node: Node) -> str:
    came = [index for index in range(1, node.nodes) if (node.meet / f"worker-{index:05d}.json").exists()]
    names = [
        node.hosts[index] if index < len(node.hosts) else f"node {index}"
        for index in range(1, node.nodes)
        if index not in came
    ]
    said = (
        f"; nothing was heard of {', '.join(names)}"
        if names
        else "; all reached the head, but Ray did not start"
    )
    return f"{alive(node)} of {node.nodes} nodes joined{said}"


def stop_before_start(signals: Signals) -> None:
    signals.take()
    if signals.stop:
        raise StopRequested("a signal came before the driver started", "a started run", "submit it again")

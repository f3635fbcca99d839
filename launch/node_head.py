"""The head of `vitline node`: starts Ray, waits for all nodes, runs the driver as a child."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from launch import node_ray
from launch.node_meet import (
    POLL_S,
    Node,
    Signals,
    alive,
    alive_file,
    stop_before_start,
    wait_until,
    write_exit,
)
from launch.node_ray import Child
from pipeline.errors import EnvironmentUnfit, StopRequested, VitlineError
from pipeline.lease import EXPIRY_S
from pipeline.rundir import read_json, write_json

_UNFINISHED = StopRequested.exit_code
_BUSY = 8
# How long the driver may take to stop once a node is lost; its ranks may hang in a collective.
LOST_GRACE_S = 120.0
# A node that Ray reports dead stays dead; this only spares one that is reported late.
_LOST_CONFIRM_S = 5.0


def run_head(node: Node, signals: Signals, temp: Path) -> int:
    code = 1
    reason = ""
    children: list[Child] = []
    try:
        node_ray.make_token(Path(os.environ["RAY_AUTH_TOKEN_PATH"]))
        address = _start_head(node, signals, temp, children)
        _wait_for_nodes(node, signals, children)
        code = _check_nodes(node, signals, address, children) if node.preflight else 0
        if code == 0:
            code, reason = _drive(node, signals, address, children)
    except VitlineError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        # Before Ray goes: the workers then know why theirs loses its head.
        write_exit(node, code, reason)
        for child in reversed(children):
            child.stop()
    if reason:
        print(f"vitline node: {reason}", file=sys.stderr)
    return code


def _start_head(node: Node, signals: Signals, temp: Path, children: list[Child]) -> str:
    """Ray's head; returns its address once it answers and the workers can read it."""
    # One node talks to itself alone, so nobody else needs to reach it.
    ip = node_ray.address_towards(node.hosts[1] if len(node.hosts) > 1 else "127.0.0.1")
    address = f"{ip}:{node_ray.free_port(ip, node_ray.preferred_port(node.job))}"
    resources = node_ray.resource_arguments(node.cpus, node.gpus)
    ray = node_ray.start_head(address, node.job, temp, node.log, resources)
    children.append(ray)
    wait_until(node, signals, lambda: node_ray.answers(address), ray, "Ray's head did not answer")
    write_json(node.meet / "head.json", {"address": address, "host": socket.gethostname()})
    return address


def _wait_for_nodes(node: Node, signals: Signals, children: list[Child]) -> None:
    """Until as many nodes are alive as were asked for."""
    ray = children[0]
    address = str((read_json(node.meet / "head.json") or {})["address"])
    argv = [sys.executable, "-m", "launch.node_watch", address, str(alive_file(node))]
    watch = Child(argv, node.meet / "watch.log", node_ray.ray_environment())
    children.append(watch)

    deadline = time.monotonic() + node.join_timeout_s - 2 * POLL_S

    def joined() -> bool:
        if watch.poll() is not None:
            raise EnvironmentUnfit(
                f"the count of nodes ended: {watch.tail()}", "a head that answers", f"see {node.log}"
            )
        # Those that are late may still come; the gang takes them in when it is made anew.
        return alive(node) >= (node.nodes if time.monotonic() < deadline else node.min_nodes)

    wait_until(node, signals, joined, ray, "", missing=True)


def _check_nodes(node: Node, signals: Signals, address: str, children: list[Child]) -> int:
    """Exit code of the checks, which say themselves what is wrong."""
    checks = Child([*node.preflight, "--address", address], None, node_ray.ray_environment())
    children.append(checks)
    while (code := checks.poll()) is None:
        stop_before_start(signals)
        time.sleep(POLL_S)
    children.remove(checks)
    return code


def _drive(node: Node, signals: Signals, address: str, children: list[Child]) -> tuple[int, str]:
    """The driver as a child; its exit code and, where it was not the driver's own end, the reason."""
    ray, watch = children
    argv = [*node.driver, "--address", address]
    started, started_with = time.monotonic(), alive(node)
    driver = Child(argv, None, node_ray.ray_environment())
    children.append(driver)
    lost_since: float | None = None
    while True:
        for number in signals.take():
            driver.send(number)
        code = driver.poll()
        if code == _BUSY and not signals.stop and time.monotonic() - started < EXPIRY_S + 10:
            # The lease of a driver that died with its host, before a requeue, expires by itself.
            time.sleep(5)
            children[-1] = driver = Child(argv, None, node_ray.ray_environment())
            continue
        if code is not None:
            return code, ""
        if ray.poll() is not None or watch.poll() is not None:
            return _abandon(driver, f"Ray's head ended; see {node.log}")
        if alive(node) >= node.min_nodes:
            lost_since = None
        else:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _LOST_CONFIRM_S:
                return _abandon(driver, f"{started_with - alive(node)} of {started_with} nodes were lost")
        time.sleep(POLL_S)


def _abandon(driver: Child, reason: str) -> tuple[int, str]:
    """End the driver after a loss; what it saved is there for the next start."""
    driver.stop(LOST_GRACE_S)
    code = driver.poll()
    # It may have finished at this very moment; every other end is a consequence of the loss.
    return (0, "") if code == 0 else (_UNFINISHED, f"{reason}; the same job continues the run")

"""Nodes that are about to be taken away, as Ray's GCS knows them.

    `ray drain-node`, an autoscaler, or SIGTERM at `ray start --block`
      ──► GCS: this node is draining, until a deadline
      ──► every rank and job on it looks here: stop, with a checkpoint    (`notice`)
      ──► the driver counts the node as gone and starts elsewhere         (`leaving_nodes`)

Ray Train has a watcher for the same, but it is a process more in every gang, it looks every 5 s, and what it
found reaches the ranks through a barrier at every step. Here a thread asks for its own node; the ranks'
agreement at the step boundary does the rest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray._private.state import state as _gcs

log = logging.getLogger(__name__)

# Of two looks. A notice comes 30 s and more before the node goes.
_POLL_S = 2.0


@contextmanager
def notice() -> Iterator[Callable[[], bool]]:
    """While inside: a function that says whether this process' node is to be taken away. It never waits."""
    node = ray.get_runtime_context().get_node_id()
    leaving, ended = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            try:
                if node in leaving_nodes():
                    log.warning("node %s is to be taken away", node)
                    leaving.set()
                    return
            except Exception:
                # GCS does not answer: if it stays so, Ray itself ends this process.
                log.debug("GCS does not say which nodes leave", exc_info=True)

    thread = threading.Thread(target=watch, name="preemption", daemon=True)
    thread.start()
    try:
        yield leaving.is_set
    finally:
        ended.set()


def leaving_nodes() -> Mapping[str, int]:
    """Node id → when it goes (Unix time, ms; 0: not said) of all nodes that drain."""
    nodes: Mapping[str, int] = _gcs.get_draining_nodes()
    return nodes


def was_preempted(error: BaseException) -> bool:
    """Whether Ray says of a dead worker that its node was taken away, as announced."""
    death = getattr(error, "health_check_failure", error)
    return bool(getattr(death, "preempted", False))

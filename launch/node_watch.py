"""Counts the alive nodes of a Ray cluster: `python -m launch.node_watch ADDRESS FILE`.

A process of its own, because Ray ends the process that is connected to it when its head is lost, and the
one that looks after a node must outlive that. FILE holds {"alive": n, "hosts": [...]}, replaced at each
change.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray

from pipeline.rundir import write_json

_POLL_S = 1.0


def watch(address: str, file: Path) -> None:
    """Write the count until the process is ended."""
    ray.init(address=address, configure_logging=False, log_to_driver=False)
    before: list[str] | None = None
    while True:
        now = sorted(f"{node['NodeName']}:{node['NodeManagerPort']}" for node in ray.nodes() if node["Alive"])
        if now != before:
            write_json(file, {"alive": len(now), "hosts": now})
            before = now
        time.sleep(_POLL_S)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]))

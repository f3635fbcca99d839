"""Ranks of tests/numerics/engine_ranks.py: all its cases in a row, on a number of processes over loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "numerics" / "engine_ranks.py"
TIMEOUT_S = 600  # for ranks that hang; a world takes a fraction of a minute
FLOAT32 = 1e-5  # relative, on losses and norms; measured: 3e-7

Seen = dict[str, Any]


def run_world(size: int, cases: list[dict[str, Any]], directory: Path) -> Seen:
    """What rank 0 of `size` saw, by the cases' names, and what bare loops do ("adam", "sgd")."""
    out, given = directory / f"out-{size}.json", directory / f"cases-{size}.json"
    given.write_text(json.dumps(cases))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    ours = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "DS_ACCELERATOR": "cpu",
    }
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = []
    for rank in range(size):
        with (directory / f"log-{size}-{rank}.txt").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(PROGRAM), str(out), str(given)],
                    env={**os.environ, **ours, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = "".join((directory / f"log-{size}-{rank}.txt").read_text()[-3000:] for rank in range(size))
    assert codes == [0] * size, f"ranks ended with {codes}: {said}"
    seen: Seen = json.loads(out.read_text())
    return seen


def check(seen: Seen, name: str, tolerance: float = FLOAT32, first: int = 0) -> None:
    """The case's losses and norms are those of the bare loop, from step `first` on."""
    expected = seen["sgd" if name.startswith("sgd") else "adam"]
    steps = len(seen[name]["losses"])
    assert seen[name]["applied"] == [True] * steps
    for figure in ("losses", "norms"):
        wanted = expected[figure][first : first + steps]
        assert seen[name][figure] == pytest.approx(wanted, rel=tolerance), f"{name}: {figure}"

"""Runs a round on this machine as `vitline run`, in a process of its own that outlives the tick.

What a later tick needs to find it again is in the run's directory: the driver's lease while it goes on,
result.json once it has ended. The process id is only needed for the seconds before the lease is there.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.config import RunConfig
from pipeline.config_io import dump_config
from pipeline.lease import live_holder
from pipeline.retrain.tick import RunState
from pipeline.rundir import RunDir, read_json, write_atomic

# A driver that was given the stop signal saves and ends; a tick waits no longer for it than this.
_STOP_WAIT_S = 60.0


class LocalRunner:
    """Args:
    directory: working directory of the runs, from which relative paths count.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, config: RunConfig, run: RunDir) -> dict[str, Any]:
        """Start the run; one whose driver lives already is left alone."""
        holder = live_holder(run.lease)
        if holder is not None:
            return {"host": holder["host"], "pid": holder["pid"], "since": 0.0}
        file = run.launch / "config.yaml"
        write_atomic(file, dump_config(config).encode())
        with (run.launch / "retrain.log").open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "launch", "run", str(file)],
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        return {"host": socket.gethostname(), "pid": child.pid, "since": time.time()}

    def look(self, run: RunDir, record: dict[str, Any]) -> RunState:
        result = read_json(run.result)
        if result is not None and float(result["finished"]) >= float(record["since"]):
            return RunState(running=False, exit_code=int(result["exit_code"]))
        running = live_holder(run.lease) is not None or self._process(record) is not None
        return RunState(running=running)

    def stop(self, run: RunDir, record: dict[str, Any]) -> None:
        """Ask the driver to save and end, and wait for that a while. One of another host is left to end."""
        process = self._process(record)
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_WAIT_S
        while time.monotonic() < deadline and self._process(record) is not None:
            time.sleep(0.2)

    def _process(self, record: dict[str, Any]) -> psutil.Process | None:
        """The process that was started, while it lives; ids are used again, so its start is checked."""
        if record["host"] != socket.gethostname():
            return None
        child = self._children.get(int(record["pid"]))
        if child is not None and child.poll() is not None:
            return None
        try:
            process = psutil.Process(int(record["pid"]))
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if process.create_time() <= float(record["since"] or time.time()) + 1 else None
        except psutil.NoSuchProcess:
            return None

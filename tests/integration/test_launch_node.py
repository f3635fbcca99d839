"""`vitline node` with several "hosts": processes of this machine, each with Ray processes of its own.

The driver is a few lines of Python in place of `vitline run`, so that what is tested is the nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch import node_ray
from pipeline.rundir import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]

NODE = """
import json, sys
from pathlib import Path
from launch.node import run_node
from launch.node_meet import Node
from pipeline.errors import VitlineError
given = json.loads(sys.argv[1])
paths = {name: Path(given[name]) for name in ("meet", "launch")}
lists = {name: tuple(given[name]) for name in ("driver", "preflight", "hosts")}
try:
    sys.exit(run_node(Node(**{**given, **paths, **lists})))
except VitlineError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""

# Says that it runs and which signal it got; ends with the code it was given, or with 75 when told to stop.
DRIVER = """
import signal, sys, time
from pathlib import Path
place, code, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
def stop(number, frame):
    (place / "signal").write_text(signal.Signals(number).name)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, stop)
(place / "driver").write_text(" ".join(sys.argv[4:]))
time.sleep(seconds)
sys.exit(code)
"""


class Nodes:
    """`count` nodes of one start."""

    def __init__(self, place: Path, count: int, *, code: int = 0, seconds: float = 0, **options: Any) -> None:
        self.place = place
        self.meet = place / "launch" / "start"
        driver = place / "driver.py"
        driver.write_text(DRIVER)
        self.job = f"{os.getpid()}{time.time_ns() % 10**6}"
        self.settings: dict[str, Any] = {
            "driver": [sys.executable, str(driver), str(place), str(code), str(seconds)],
            "meet": str(self.meet),
            "job": self.job,
            "nodes": count,
            "min_nodes": count,
            "hosts": ["127.0.0.1"] * count,
            "preflight": [],
            "cpus": 1,
            "gpus": 0,
            "join_timeout_s": 120,
            "launch": str(place / "launch"),
            **options,
        }
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        with (self.place / f"node-{index}.log").open("wb") as log:
            self.processes[index] = subprocess.Popen(
                [sys.executable, "-c", NODE, json.dumps({**self.settings, "index": index})],
                cwd=ROOT,
                env={**os.environ, "HOME": str(self.place), "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def codes(self, timeout: float = 120) -> list[int]:
        return [self.processes[index].wait(timeout) for index in sorted(self.processes)]

    def text(self, index: int) -> str:
        return (self.place / f"node-{index}.log").read_text()

    def wait_for(self, file: str, timeout: float = 120) -> None:
        deadline = time.monotonic() + timeout
        while not (self.place / file).exists():
            assert time.monotonic() < deadline, f"no {file}:\n" + self.text(0)
            time.sleep(0.2)

    def temp_name(self) -> str:
        return f"vl{self.job[-8:]}-"

    def left(self) -> list[str]:
        """What is still there of this start: processes whose command names its directory, and that itself."""
        lines = []
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if (self.temp_name() in line or str(self.place) in line) and process.pid != os.getpid():
                lines.append(line[:120])
        return lines + [str(path) for path in Path("/tmp").glob(f"{self.temp_name()}*")]

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A node that a test killed could not do it itself.
        for temp in Path("/tmp").glob(f"{self.temp_name()}*"):
            shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Callable[..., Nodes]]:
    made: list[Nodes] = []

    def make(count: int, **options: Any) -> Nodes:
        made.append(Nodes(tmp_path, count, **options))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.mark.ray
def test_two_nodes_end_with_the_drivers_code_and_leave_nothing(nodes: Callable[..., Nodes]) -> None:
    two = nodes(2, code=4, seconds=3)
    wanted = node_ray.preferred_port(two.job)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", wanted))
        taken.listen()
        # The worker is there first, as when the head's host is slow.
        two.start(1)
        time.sleep(2)
        two.start(0)
        two.wait_for("driver")
        temps = list(Path("/tmp").glob(f"{two.temp_name()}*"))
        assert [stat.S_IMODE(temp.stat().st_mode) for temp in temps] == [0o700, 0o700]
        assert two.codes() == [4, 4], two.text(0) + two.text(1)
    head = read_json(two.meet / "head.json")
    assert head is not None
    assert head["address"] != f"127.0.0.1:{wanted}"
    assert (two.place / "driver").read_text() == f"--address {head['address']}"
    outcome = read_json(two.place / "launch" / "exit.json")
    assert outcome is not None
    assert (outcome["exit_code"], outcome["job"]) == (4, two.job)
    token = two.place / "launch" / "cluster_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert token.read_text() not in two.text(0) + (two.meet / "ray-00000.log").read_text()
    assert two.left() == []


def test_a_worker_without_a_head_gives_up(nodes: Callable[..., Nodes]) -> None:
    lonely = nodes(2, join_timeout_s=1.0)
    lonely.start(1)
    assert lonely.codes() == [7]
    assert "on storage that all nodes share" in lonely.text(1)


def test_a_head_that_cannot_be_reached_is_named(nodes: Callable[..., Nodes]) -> None:
    apart = nodes(2, join_timeout_s=1.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        write_json(apart.meet / "head.json", {"address": address, "host": "n1"})
        apart.start(1)
        assert apart.codes() == [7]
    assert f"{address} does not answer from here" in apart.text(1)
    assert "open the ports between the nodes" in apart.text(1)


def test_the_place_of_an_earlier_start_is_refused(nodes: Callable[..., Nodes]) -> None:
    used = nodes(2)
    used.meet.mkdir(parents=True)
    (used.meet / "exit_code").write_text("75\n")
    used.start(0)
    assert used.codes() == [2]
    assert "give another --job or --meet" in used.text(0)
    assert (used.meet / "exit_code").read_text() == "75\n"


def test_a_head_whose_ray_does_not_start_says_so_to_all(nodes: Callable[..., Nodes]) -> None:
    broken = nodes(2, cpus="none")
    broken.start(0)
    broken.start(1)
    assert broken.codes() == [7, 7]
    assert "`ray start` ended with" in broken.text(0)
    assert (broken.meet / "exit_code").read_text() == "7\n"
    assert not (broken.place / "driver").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_that_are_not_fit_get_no_driver(nodes: Callable[..., Nodes]) -> None:
    checks = [sys.executable, "-c", "import sys; print('checked', sys.argv[1:]); sys.exit(7)"]
    one = nodes(1, preflight=checks)
    one.meet.mkdir(parents=True)
    (one.meet / "stop").touch()  # of an earlier start on this one node
    one.start(0)
    assert one.codes() == [7]
    assert "checked ['--address', '127.0.0.1:" in one.text(0)
    assert not (one.place / "driver").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_request_to_stop_reaches_the_driver(nodes: Callable[..., Nodes]) -> None:
    one = nodes(1, seconds=300)
    one.start(0)
    one.wait_for("driver")
    time.sleep(1)
    (one.meet / "stop").touch()
    assert one.codes() == [75]
    assert (one.place / "signal").read_text() == "SIGUSR1"
    assert one.left() == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_signal_reaches_the_driver(nodes: Callable[..., Nodes]) -> None:
    one = nodes(1, seconds=300)
    one.start(0)
    one.wait_for("driver")
    time.sleep(1)
    one.processes[0].send_signal(signal.SIGTERM)
    assert one.codes() == [75]
    assert (one.place / "signal").read_text() == "SIGTERM"
    assert one.left() == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_lost_worker_ends_the_run_to_be_continued(nodes: Callable[..., Nodes]) -> None:
    three = nodes(3, seconds=300)
    for index in range(3):
        three.start(index)
    three.wait_for("driver")
    time.sleep(1)
    three.processes[2].kill()
    assert three.codes() == [75, 75, -signal.SIGKILL], three.text(0)
    assert "1 of 3 nodes were lost; the same job continues the run" in three.text(0)
    assert (three.place / "signal").read_text() == "SIGTERM"
    outcome = read_json(three.place / "launch" / "exit.json")
    assert outcome is not None
    assert outcome["exit_code"] == 75
    # Ray's processes of the killed node went with it; its directory nobody could remove.
    assert [line for line in three.left() if not line.startswith("/tmp/")] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_may_shrink_survives_a_lost_worker(nodes: Callable[..., Nodes]) -> None:
    two = nodes(2, code=0, seconds=25, min_nodes=1)
    two.start(0)
    two.start(1)
    two.wait_for("driver")
    two.processes[1].kill()
    assert two.codes() == [0, -signal.SIGKILL], two.text(0)


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_never_comes_is_named(nodes: Callable[..., Nodes]) -> None:
    one_of_two = nodes(2, join_timeout_s=40, hosts=["127.0.0.1", "n2.example"])
    one_of_two.start(0)
    assert one_of_two.codes() == [7]
    assert "1 of 2 nodes joined; nothing was heard of n2.example" in one_of_two.text(0)
    assert one_of_two.left() == []

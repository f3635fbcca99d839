"""One driver at a time, with real processes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.errors import Busy
from pipeline.lease import EXPIRY_S, FilePlace, Holder, Lease

HOLD = """
import sys, time
from pathlib import Path
from pipeline.lease import Lease
with Lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold_elsewhere(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_driver_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    process = hold_elsewhere(path)
    try:
        with pytest.raises(Busy, match=f"process {process.pid} on {socket.gethostname()}"), Lease(path):
            pass
        assert path.exists()
    finally:
        process.kill()
        process.wait()


def test_the_lease_of_a_killed_driver_is_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    process = hold_elsewhere(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Lease(path):
        assert json.loads(path.read_text())["pid"] == psutil.Process().pid
    assert not path.exists()


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
@pytest.mark.parametrize(("age_s", "free"), [(0.0, False), (EXPIRY_S + 1, True)])
def test_the_lease_of_another_host_expires_with_its_heartbeat(
    tmp_path: Path, age_s: float, free: bool, host: str
) -> None:
    """Also where it has the same name, as copies of one image do."""
    path = tmp_path / "lease.json"
    holder = {
        "owner": "x",
        "host": host,
        "boot": "another",
        "pid": 1,
        "pid_started": 0,
        "since": 0,
        "heartbeat": time.time() - age_s,
    }
    path.write_text(json.dumps(holder))
    if free:
        with Lease(path):
            pass
    else:
        with pytest.raises(Busy, match=f"on {host}"), Lease(path):
            pass


def test_a_half_written_lease_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    path.write_text('{"owner": "x", "ho')
    with Lease(path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


class Flaky(FilePlace):
    """A store that answers or does not, as a test says."""

    answers = True

    def read(self) -> Holder | None:
        if not self.answers:
            raise OSError("no answer")
        return super().read()


def test_a_store_that_does_not_answer_is_no_other_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.lease.HEARTBEAT_S", 0.05)
    place = Flaky(tmp_path / "lease.json")
    with Lease(place) as lease:
        place.answers = False
        time.sleep(0.5)
        lease.check()
        place.answers = True
        first = json.loads((tmp_path / "lease.json").read_text())["heartbeat"]
        time.sleep(0.5)
        assert json.loads((tmp_path / "lease.json").read_text())["heartbeat"] > first, "it stopped beating"
        # Another driver came meanwhile: seen at the next beat.
        (tmp_path / "lease.json").write_text(json.dumps({"owner": "other", "host": "x", "heartbeat": 0}))
        assert lease.lost.wait(10)
        with pytest.raises(Busy, match="another driver's now"):
            lease.check()
    assert (tmp_path / "lease.json").exists(), "it removed the other's"


def test_of_two_places_the_first_is_given_back_when_the_second_is_held(tmp_path: Path) -> None:
    holder = {"owner": "x", "host": "elsewhere", "pid": 1, "since": 0, "heartbeat": time.time()}
    (tmp_path / "two.json").write_text(json.dumps(holder))
    with pytest.raises(Busy, match="on elsewhere"), Lease(tmp_path / "one.json", tmp_path / "two.json"):
        pass
    assert not (tmp_path / "one.json").exists()
    assert (tmp_path / "two.json").exists()

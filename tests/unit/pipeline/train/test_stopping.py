import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipeline.train.stopping import SIGNALS, StopSwitch, seconds_in, signals_turn_on


def test_times_as_people_write_them() -> None:
    assert [seconds_in(text) for text in ("3h50m", "90m", "45s", "1h1s")] == [13800, 5400, 45, 3601]
    for text in ("", "3", "50m3h", "1.5h"):
        with pytest.raises(ValueError, match="3h50m"):
            seconds_in(text)


def test_whoever_asks_first(tmp_path: Path) -> None:
    assert not StopSwitch(tmp_path / "stop")()
    assert StopSwitch(tmp_path / "stop", lambda: True)()
    assert StopSwitch(tmp_path / "stop", after_s=0)()
    assert not StopSwitch(tmp_path / "stop", after_s=100)()
    (tmp_path / "stop").touch()
    assert StopSwitch(tmp_path / "stop")()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda n: n.name)
def test_signals_turn_it_on_and_kill_no_child(tmp_path: Path, number: signal.Signals) -> None:
    before = [signal.getsignal(n) for n in SIGNALS], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    switch = StopSwitch(tmp_path / "stop")
    with signals_turn_on(switch):
        # As a compiler that is running when a launcher signals the whole group.
        said = subprocess.check_output(["sh", "-c", f"kill -{number.value} $$; echo alive"], text=True)
        assert not switch()
        os.kill(os.getpid(), number)
        end = time.monotonic() + 60
        while not switch() and time.monotonic() < end:
            time.sleep(0.001)
        assert switch()
    assert said == "alive\n"
    assert ([signal.getsignal(n) for n in SIGNALS], signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before

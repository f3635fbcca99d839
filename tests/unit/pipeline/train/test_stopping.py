from pathlib import Path

import pytest

from pipeline.train.stopping import StopSwitch, seconds_in


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

"""`--stop-after`: what it takes for a time, and that it asks once, and not after the end."""

from __future__ import annotations

import threading

import pytest

from launch.stop_after import span_s, stopping_after
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13_800), ("90m", 5400), ("45s", 45), ("1d", 86_400), ("1d2h3m4s", 93_784), (" 2h ", 7200)],
)
def test_times_with_units(text: str, seconds: int) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "3.5h", "-1h", "0m", "50m3h", "3 h", "soon"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="3h50m, 90m or 1d12h"):
        span_s(text)


# A time that is over already, as after a long planning, is one too.
@pytest.mark.parametrize("seconds", [0.0, -5.0])
def test_a_stop_is_asked_for_when_the_time_is_over(
    seconds: float, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = threading.Event()
    with stopping_after(seconds, stop):
        assert stop.wait(60)
    assert "running jobs save and end" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [3600.0, None])
def test_nothing_is_left_of_it_when_the_run_ends_before(seconds: float | None) -> None:
    stop, before = threading.Event(), threading.active_count()
    with stopping_after(seconds, stop):
        pass
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(60)
    assert threading.active_count() == before
    assert not stop.is_set()

"""The next ticks of a schedule: by hand over a change of the clocks, and as systemd reckons them."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from launch.schedule import calendar
from launch.schedule_commands import schedule_app
from launch.schedule_times import next_times
from pipeline.config import RetrainSettings
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
BERLIN = "Europe/Berlin"
EVE = datetime.datetime(2026, 3, 28, 12, tzinfo=datetime.UTC)  # the clocks go forward at night
SCHEDULES = [
    "30 2 * * *",
    "*/15 8-18 * * 1,3",
    "0 2 1 */3 *",
    "0 2 1 * 0",
    "5,50 0-12/6 2-20/9 * *",
    "0 0 29 2 *",
]


def texts(schedule: str, after: datetime.datetime, count: int = 3) -> list[str]:
    return [f"{moment:%m-%d %H:%M %z}" for moment in next_times(schedule, BERLIN, after, count)]


def test_a_time_that_the_clocks_leave_out_is_left_out() -> None:
    assert texts("30 2 * * *", EVE, 2) == ["03-30 02:30 +0200", "03-31 02:30 +0200"]
    assert texts("30 1 * * *", EVE, 2) == ["03-29 01:30 +0100", "03-30 01:30 +0200"]


def test_a_time_that_comes_twice_ticks_once() -> None:
    eve = datetime.datetime(2026, 10, 24, 12, tzinfo=datetime.UTC)
    assert texts("30 2 * * *", eve, 2) == ["10-25 02:30 +0200", "10-26 02:30 +0100"]


def test_day_and_weekday_are_one_or_the_other() -> None:
    # Sunday, 29 March has no two o'clock.
    assert texts("0 2 1 * 0", EVE) == ["04-01 02:00 +0200", "04-05 02:00 +0200", "04-12 02:00 +0200"]
    assert texts("0 2 1 4 *", EVE, 1) == ["04-01 02:00 +0200"]


def test_later_than_now_and_as_often_as_there_is() -> None:
    noon = datetime.datetime(2026, 3, 28, 13, 0, tzinfo=datetime.UTC)
    assert texts("0 14 * * *", noon, 1) == ["03-29 14:00 +0200"]
    assert next_times("0 0 31 2 *", BERLIN, EVE, 5) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_systemd_reckons_the_same(schedule: str) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    base = f"{EVE:%Y-%m-%d %H:%M:%S} UTC"
    found: set[str] = set()
    for entry in calendar(schedule):
        done = subprocess.run(
            [tool, "calendar", "--iterations=5", f"--base-time={base}", f"{entry} {BERLIN}"],
            env={"TZ": "UTC"},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        found |= set(re.findall(r"(?:elapse|#\d+): \w+ (\S+ \S+) UTC", done.stdout))
    ours = next_times(schedule, BERLIN, EVE, 5)
    assert [f"{moment.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S}" for moment in ours] == sorted(found)[:5]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("5/10 * * * *", r"'5/10' in .*expected \*, N, N-M, \*/STEP"),
        ("*/0 * * * *", "'\\*/0' in"),
        ("60 * * * *", "'60' in"),
        ("0 5-2 * * *", "empty range"),
        ("0 2 * *", "4 fields"),
        ("0 2 */2 * 1", r"day '\*/2' with weekday '1'"),
        ("0 2 1 * */2", r"day '1' with weekday '\*/2'"),
    ],
)
def test_what_schedulers_read_differently_is_refused(schedule: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrainSettings.model_validate({"data": {"watch": "incoming"}, "schedule": schedule})


def test_the_command_says_when_it_will_tick(tmp_path: Path) -> None:
    app = typer.Typer()
    app.add_typer(schedule_app, name="schedule")
    words = ["schedule", "render", "cron", str(ROOT / "configs/retrain/demo.yaml"), "--out", str(tmp_path)]
    given = ["retrain.schedule=0 2 * * 1", "retrain.timezone=UTC"]
    done = CliRunner().invoke(app, [*words, *given], catch_exceptions=False)
    assert done.exit_code == 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("next: ")]
    assert len(lines) == 5
    assert all(re.fullmatch(r"next: Mon \d{4}-\d\d-\d\d 02:00 UTC", line) for line in lines)
    with pytest.raises(ConfigError, match="'0 0 31 2 \\*' never ticks"):
        CliRunner().invoke(app, [*words, "retrain.schedule=0 0 31 2 *"], catch_exceptions=False)

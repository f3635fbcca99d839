"""What is told beside the ends of rounds: a tick that had died, a tick that began nothing, a stale model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.retrain import print_history
from pipeline.retrain.occasions import why_stale
from tests.helpers.month import DAY_S, Month, drop


def told_by(home: Path, *occasions: str, **data: Any) -> tuple[Month, Path]:
    """A month whose notifications are lines of a file."""
    told = home / "told.jsonl"
    hook = {"command": ["sh", "-c", f"cat >> {told}; echo >> {told}"], "on": list(occasions)}
    return Month(home, notify=[hook], **data), told


def lines(told: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []


def test_a_tick_says_that_the_one_before_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    month, told = told_by(tmp_path, "lease_taken", "promoted")
    drop(month.watch, 1)
    month.day = 3
    pid = month.dies_in_the_middle()
    assert month.tick().decision == "promoted"
    taken, promoted = lines(told)
    assert (taken["event"], promoted["event"]) == ("lease_taken", "promoted")
    assert taken["why"].startswith(f"process {pid} on ")
    assert taken["summary"].startswith("classifier: lease_taken (process ")
    assert [event["decision"] for event in month.state.history()] == ["lease_taken", "promoted"]
    # A lease that was given back is nobody's, and one that was cut short in writing is somebody's.
    month.tick()
    month.state.lease.write_text("{")
    month.tick()
    assert [line["why"][:15] for line in lines(told) if line["event"] == "lease_taken"] == [
        f"process {pid} on "[:15],
        "process unknown",
    ]
    # The last decision is the tick's, not what it came upon.
    monkeypatch.chdir(tmp_path)
    print_history(month.config, as_json=False, last_only=True)
    assert capsys.readouterr().out.startswith("skipped: ")


def test_a_tick_that_began_nothing_is_told_where_that_is_asked_for(tmp_path: Path) -> None:
    month, told = told_by(tmp_path, "skipped")
    assert month.tick().decision == "skipped"
    (line,) = lines(told)
    assert (line["event"], line["model"]) == ("skipped", "classifier")
    assert line["why"] == month.state.history()[-1]["why"]


def test_a_model_that_is_not_renewed_is_stale_once_in_a_while(tmp_path: Path) -> None:
    month, told = told_by(
        tmp_path, "stale", data={"watch": str(tmp_path / "incoming"), "min_new_samples": 8, "max_age_days": 5}
    )
    month.trainer.accuracy = lambda pattern: 0.9 if "day-01" in pattern and "day-02" not in pattern else 0.5
    drop(month.watch, 1)
    said = {}
    for day in (2, 3, 12, 13, 23, 24):
        month.day = day
        if day == 3:
            drop(month.watch, 2)  # from here on every round is rejected
        before = len(lines(told))
        month.tick()
        if len(lines(told)) > before:
            said[day] = lines(told)[-1]["why"]
    # Promoted on day 2: more than ten days later, and again after as many.
    assert said == dict.fromkeys((13, 24), "nothing was promoted in 10 days, twice max_age_days")


def test_age_counts_from_the_first_tick_of_a_model_that_never_was_promoted() -> None:
    events = [{"time": 0.0, "decision": "skipped"}, {"time": 9 * DAY_S, "decision": "rejected"}]
    assert why_stale(events, 2, 4 * DAY_S) is None
    assert why_stale(events, 2, 4 * DAY_S + 1) is not None
    assert why_stale(events, None, 400 * DAY_S) is None
    assert why_stale([], 2, 400 * DAY_S) is None

"""Curves as the page shows them."""

from __future__ import annotations

from pathlib import Path

from pipeline.events import EventLog
from pipeline.report.curves import MOST_POINTS, read_curve


def test_redone_steps_count_once_and_losses_that_are_no_numbers_not_at_all(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log({"event": "start", "step": 0, "steps": 4})
    for step, loss in ((1, 3.0), (2, 2.0), (3, 9.0)):
        log(
            {
                "event": "progress",
                "step": step,
                "loss": loss,
                "images_per_s": 10.0 * step,
                "position": step * 8,
            }
        )
    log({"event": "start", "step": 2, "steps": 4})
    for step, loss in ((3, 1.0), (4, float("nan"))):
        log({"event": "progress", "step": step, "loss": loss, "skipped": 1})
    log({"event": "validate", "step": 4, "top1": 0.5})
    log.close()
    curve = read_curve(tmp_path / "events.jsonl")
    assert curve.steps == (1, 2, 3)
    assert curve.losses == (3.0, 2.0, 1.0)
    assert curve.images == (8, 16, 0)
    assert curve.validations == ((4, 0.5),)
    assert [start["step"] for start in curve.starts] == [0, 2]
    assert (curve.skipped, curve.rate) == (1, 20.0)


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(1, 2 * MOST_POINTS + 8):
        log({"event": "progress", "step": step, "loss": 1.0})
    log.close()
    curve = read_curve(tmp_path / "events.jsonl")
    assert len(curve.steps) <= MOST_POINTS + 1
    assert (curve.steps[0], curve.steps[-1]) == (1, 2 * MOST_POINTS + 7)


def test_a_job_without_events_has_an_empty_curve(tmp_path: Path) -> None:
    assert read_curve(tmp_path / "none.jsonl").steps == ()

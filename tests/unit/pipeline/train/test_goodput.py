"""Where a training's time went, from made-up events whose answer is known."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.train.goodput import CAUSES, goodput


def progress(time: float, step: int, attempt: int, **more: float) -> dict[str, Any]:
    return {"event": "progress", "time": time, "step": step, "attempt": attempt, "data_wait_s": 0.1, **more}


# Begins at 90; a step takes 1 s, the first 4 s; a kill after step 30 of a training saved at 20.
FIRST = [
    {"event": "start", "time": 100.0, "step": 0, "attempt": 1, "startup_s": 10.0},
    progress(113.0, 10, 1, first_step_s=4.0),
    progress(125.0, 20, 1),
    {"event": "checkpoint", "time": 126.0, "step": 20, "stall_s": 0.5, "attempt": 1},
    {"event": "validate", "time": 128.0, "step": 20, "seconds": 2.0, "attempt": 1},
    progress(137.5, 30, 1),
]
SECOND = [
    {"event": "start", "time": 160.0, "step": 20, "attempt": 2, "startup_s": 15.0},
    progress(170.0, 30, 2, first_step_s=1.0),
    progress(180.0, 40, 2),
    {"event": "done", "time": 181.0, "step": 40, "attempt": 2},
]


def test_an_undisturbed_stretch() -> None:
    found = goodput(FIRST[:3])
    assert found is not None
    assert found.total_s == 35.0
    # A usual step of this stretch: 1 s in the first ten, 1.2 s in the second; their median is 1.1.
    wanted = dict.fromkeys(CAUSES, 0.0) | {"start": 10.0, "compile": 4 - 1.1 - 0.1, "data": 2.0}
    assert found.lost_s == pytest.approx(wanted)
    assert found.share == pytest.approx(1 - (12 + 2.8) / 35)


def test_what_a_kill_costs() -> None:
    found = goodput(FIRST + SECOND)
    assert found is not None
    assert found.total_s == 91.0
    assert found.lost_s["down"] == pytest.approx(145 - 137.5)
    assert found.lost_s["redone"] == pytest.approx(12.5 - 2.5)
    assert found.lost_s["start"] == pytest.approx(25)
    assert (found.lost_s["save"], found.lost_s["validate"]) == (0.5, 2.0)
    assert found.lost_s["data"] == pytest.approx(4.0), "waits of redone steps count once, as redone"
    assert 0 < found.share < 1
    assert found.metrics()["cost/goodput"] == found.share


def test_notes_of_the_gang_are_no_word_of_an_attempt() -> None:
    notes = [
        {"event": "gang", "time": time, "phase": phase}
        for time, phase in ((138.0, "lost"), (140.0, "ended"), (141.0, "starting"), (144.0, "rank"))
    ]
    before = {"event": "gang", "time": 80.0, "phase": "starting"}
    after = {"event": "gang", "time": 190.0, "phase": "ended"}
    assert goodput([before, *FIRST, *notes, *SECOND, after]) == goodput(FIRST + SECOND)


def test_a_rewind_within_an_attempt_is_redone_work() -> None:
    events = [
        *FIRST[:3],
        {"event": "rewind", "time": 125.0, "step": 10, "attempt": 1},
        progress(135.0, 20, 1),
    ]
    found = goodput(events)
    assert found is not None
    assert found.lost_s["redone"] == pytest.approx(12.0)


def test_nothing_before_the_first_start() -> None:
    assert goodput([]) is None
    assert goodput([{"event": "failed", "time": 1.0}]) is None


def test_a_step_counts_once() -> None:
    def attempt(number: int, time: float, step: int, steps: range) -> list[dict[str, Any]]:
        start = {"event": "start", "attempt": number, "time": time, "step": step}
        later = [
            {"event": "progress", "attempt": number, "time": time + n, "step": s} for n, s in enumerate(steps)
        ]
        return [start, *later]

    first = attempt(1, 1.0, 1, range(1, 6))  # 4 s between the first and the last
    found = goodput(first)
    assert found is not None
    assert found.share == 1.0
    # Steps 4 and 5 are done again, after 6 s; 2 s of the first attempt stay, and 2 s of the second.
    found = goodput([*first, *attempt(2, 11.0, 3, range(4, 7))])
    assert found is not None
    assert found.share == pytest.approx((2 + 2) / 12)
    assert goodput([]) is None

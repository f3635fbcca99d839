import math

import pytest
import torch

from pipeline.train import cadence
from pipeline.train.cadence import Cadence, SaveCost, interval_s
from pipeline.train.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_a_fixed_interval_is_due_at_its_multiples() -> None:
    made = Cadence(5, ALONE, 7, None)
    assert [step for step in range(8, 21) if made.due(step)] == [10, 15, 20]
    assert made.saved(12, SaveCost(9.0, 9.0)) is None
    assert not any(Cadence(None, ALONE, 0, None).due(step) for step in range(100))


def test_the_interval_is_young_and_dalys_within_its_bounds() -> None:
    day = 86400.0
    assert interval_s(2.0, 1.0, day) == pytest.approx(math.sqrt(2 * 2.0 * day))
    assert interval_s(1e-6, 1.0, day) == cadence.LEAST_S
    assert interval_s(1e-6, 30.0, day) == 300.0, "the disk would write all the time"
    assert interval_s(1e6, 1.0, 1e9) == cadence.MOST_S


def test_auto_measures_saves_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 2))  # a step takes two seconds
    monkeypatch.setattr(cadence.time, "monotonic", lambda: float(next(clock)))
    made = Cadence(None, ALONE, 100, 24.0)
    due = [step for step in range(101, 301) if made.due(step)]
    assert due == [110], "one save is measured, none begins before it is complete"
    # √(2 · 0.5 s · 86,400 s) = 294 s = 147 steps, from the step at which the save was seen complete.
    assert made.saved(300, SaveCost(0.5, 3.0)) == 147
    assert [step for step in range(301, 600) if made.due(step)] == [447]
    assert made.saved(450, SaveCost(0.52, 3.0)) is None, "told only when it changes much"
    assert made.saved(450, SaveCost(4.0, 3.0)) == pytest.approx(416, abs=1)


def test_more_ranks_fail_more_often_and_so_save_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "from_first", lambda self, value: value)

    def decided(ranks: int) -> int:
        clock = iter(range(10**6))
        monkeypatch.setattr(cadence.time, "monotonic", lambda: float(next(clock)))
        made = Cadence(None, World(0, ranks, 0, torch.device("cpu")), 0, 24.0)
        assert [step for step in range(1, 30) if made.due(step)] == [10]
        steps = made.saved(30, SaveCost(2.0, 1.0))
        assert steps is not None
        return steps

    assert decided(1) == pytest.approx(2 * decided(4), abs=1)

"""Who is slower than the others, and when that is worth a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from pipeline.train.stragglers import LEAST_STEPS, Stragglers, find_straggler

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([[0.1, 0.5], [0.1, 0.5], [0.9, 0.5]], (2, "data")),
        ([[0.1, 0.5], [0.1, 1.1]], (1, "forward")),
        ([[0.3, 0.1], [0.1, 0.9], [0.1, 0.1]], (1, "forward")),  # which costs more
        ([[0.1, 0.5], [0.1, 0.9]], None),  # less than twice as long
        ([[0.01, 0.5], [0.09, 0.5]], None),  # less than a tenth of the step
        ([[0.5, 0.5], [0.5, 0.5]], None),
    ],
)
def test_who_costs_most(times: list[list[float]], found: tuple[int, str] | None) -> None:
    assert find_straggler(times, 1.0) == found


@dataclass
class OfTwo:
    """The first of two ranks; the other says what `other` holds."""

    other: list[float] = field(default_factory=lambda: [0.0, 0.0])
    size: int = 2
    device: torch.device = CPU

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]

    def from_first(self, value: Any) -> Any:
        return value


def test_it_is_named_once_and_not_for_a_hiccup() -> None:
    world = OfTwo()
    stragglers = Stragglers(world)  # type: ignore[arg-type]

    def steps(count: int, seconds: float) -> str | None:
        for _ in range(count):
            stragglers.waited(seconds)
            with stragglers.forward():
                pass
        return stragglers.compare()

    assert steps(LEAST_STEPS - 1, 50.0) is None
    said = steps(1, 50.0)
    assert said == "rank 0 is slow: data takes it 50 s a step, the others 0 s"
    assert steps(LEAST_STEPS, 50.0) is None, "it was told already"
    world.other = [90.0, 0.0]
    assert (steps(LEAST_STEPS, 10.0) or "").startswith("rank 1 is slow: data takes it 90 s")
    world.other = [0.0, 0.0]
    assert steps(LEAST_STEPS, 0.0) is None


def test_one_rank_has_nobody_to_wait_for() -> None:
    stragglers = Stragglers(OfTwo(size=1))  # type: ignore[arg-type]
    for _ in range(LEAST_STEPS):
        stragglers.waited(9.0)
    assert stragglers.compare() is None

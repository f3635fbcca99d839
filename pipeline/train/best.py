"""The best checkpoint so far, by a score on held-out data: which one it is. It outlives retention.

    checkpoints/best.json     {"metric": "top1", "value": 0.71, "step": 4000, "checkpoint": "step-000004000"}

Each validation on the way that is better than all before leads to a save. What is best stands in every later
checkpoint too, so it is the same after any resume. At the end its weights are exported beside the last ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.rundir import write_json
from pipeline.train.checkpoint import MARKER, Checkpoint, complete_checkpoints, damage, directory_of

FILE = "best.json"


@dataclass(frozen=True)
class Best:
    metric: str  # top1: higher is better; loss: lower
    value: float
    step: int


class BestSoFar:
    """Of one training; the same on all ranks."""

    def __init__(self, metric: str | None, checkpoint: Checkpoint | None) -> None:
        """`metric` None: nothing is judged. `checkpoint`: where training goes on from."""
        self.metric = metric
        self.best: Best | None = None
        self._judged = -1
        self.go_back(checkpoint)

    def go_back(self, checkpoint: Checkpoint | None) -> None:
        """What was best when `checkpoint` was taken; by another metric does not count."""
        found = checkpoint.record.get("best") if checkpoint else None
        self.best = Best(**found) if found and found["metric"] == self.metric else None
        self._judged = -1

    def judge(self, step: int, scores: Mapping[str, float]) -> None:
        """Take note of a validation after `step` steps; `scores` as `val/METRIC`."""
        if self.metric is None or f"val/{self.metric}" not in scores:
            return
        value = scores[f"val/{self.metric}"]
        sign = 1 if self.metric == "top1" else -1
        if self.best is None or sign * value > sign * self.best.value:
            self.best, self._judged = Best(self.metric, value, step), step

    def found_at(self, step: int) -> bool:
        """Whether the validation after `step`, in this attempt, was the best: then it is to be saved."""
        return self._judged == step

    def record(self) -> dict[str, Any] | None:
        return None if self.best is None else asdict(self.best)


def write_best(root: Path, best: Mapping[str, Any] | None) -> str | None:
    """Write best.json, on rank 0, if that checkpoint is complete; its directory's name."""
    if best is None:
        return None
    path = directory_of(root, int(best["step"]))
    if (path / MARKER).exists():
        write_json(root / FILE, {**best, "checkpoint": path.name})
    return path.name


def find_best(root: Path, best: Best) -> Checkpoint | str:
    """The whole checkpoint, or what is wrong with it."""
    for checkpoint in complete_checkpoints(root):
        if checkpoint.step == best.step:
            return damage(checkpoint) or checkpoint
    return "it is not there"

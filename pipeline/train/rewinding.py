"""Going back to the last checkpoint and leaving out the data that a training broke on.

After `health.skips_in_a_row` updates that had to be left out, a training with `loss_not_finite: rewind` goes
back to the newest good checkpoint, and the batches since then (or the last `skip_window` of them) are left
out; after `rewinds` of these it ends. Each one is written to the job's `skipped.json` before training goes
on, and into every later checkpoint, so the data of a step is the same after any resume, on any ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.skips import Skips
from pipeline.errors import TrainingError
from pipeline.rundir import JobDir, read_json, write_json
from pipeline.train.attempt import Attempt
from pipeline.train.checkpoint import Checkpoint

DEFAULT_REWINDS = 3


class Rewind(Exception):
    """Raised by the loop on all ranks together; `error` is what to end with when it may not go back."""

    def __init__(self, step: int, error: TrainingError) -> None:
        super().__init__(str(error))
        self.step = step  # the last one that failed, counted from 1
        self.error = error


@dataclass(frozen=True)
class LeftOut:
    """One rewind. Batches are counted from 0."""

    step: int  # steps done in the checkpoint that training went back to
    failed: int  # the step that led to it
    first: int  # batches left out: first … end-1
    end: int
    attempt: int


def read_left_out(job: JobDir, checkpoint: Checkpoint | None) -> tuple[LeftOut, ...]:
    """All rewinds of a job: those in its file, and those that the checkpoint knows of (the file may be
    lost where a checkpoint was fetched from a remote store)."""
    entries = list((read_json(job.skipped) or {"rewinds": []})["rewinds"])
    if checkpoint is not None:
        entries += [entry for entry in checkpoint.record.get("rewinds", []) if entry not in entries]
    found = [LeftOut(**entry) for entry in entries]
    return tuple(sorted(found, key=lambda entry: (entry.attempt, entry.end)))


def skips_of(left_out: tuple[LeftOut, ...]) -> Skips:
    return Skips().with_windows((entry.first, entry.end) for entry in left_out)


def leave_out(
    attempt: Attempt,
    checkpoint: Checkpoint,
    fault: Rewind,
    before: tuple[LeftOut, ...],
    *,
    allowed: int | None,
    window: int | None,
) -> tuple[LeftOut, ...]:
    """Decide what to leave out after going back to `checkpoint`, and write it down; all ranks together.

    Args:
        before: rewinds of the job until now.
        allowed: rewinds in all; None: 3.
        window: batches before the fault, it included; None: all since the checkpoint.

    Raises the fault's TrainingError when there were as many rewinds already.
    """
    allowed = DEFAULT_REWINDS if allowed is None else allowed
    if len(before) >= allowed:
        raise TrainingError(
            f"{fault.error.found}, after {len(before)} rewinds", fault.error.expected, fault.error.do
        )
    batch = int(checkpoint.record["loader"]["batch"])
    since = int(checkpoint.record["loader"]["position"]) // batch
    end = skips_of(before).batch(fault.step - 1) + 1
    first = since if window is None else max(since, end - window)
    new = LeftOut(checkpoint.step, fault.step, first, end, attempt.generation)

    def write() -> None:
        attempt.check_fence()
        write_json(attempt.job.skipped, {"rewinds": [asdict(entry) for entry in (*before, new)]})

    attempt.world.on_first(write)
    attempt.report({"event": "rewind", **_event(new)})
    attempt.warn(
        f"{fault.error.found}: back to step {new.step}, batches {first} to {end - 1} are left out "
        f"(rewind {len(before) + 1} of {allowed})"
    )
    return (*before, new)


def _event(entry: LeftOut) -> Mapping[str, Any]:
    """Without `attempt`, which every event has of its own."""
    return {key: value for key, value in asdict(entry).items() if key != "attempt"}

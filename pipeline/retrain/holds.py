"""What keeps a round from beginning although data makes one due: a pause, a failure just now, a spent budget.

A round that has begun goes on to its end; `--force REASON` begins one in spite of all of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.config import BudgetSettings, RetrainSettings
from pipeline.events import read_events
from pipeline.retrain.state import Round, State
from pipeline.rundir import JobDir, RunDir

_DAY_S, _HOUR_S = 86_400.0, 3600.0


def why_held(settings: RetrainSettings, state: State, now: float) -> str | None:
    """Why no round may begin now, in words; None: one may."""
    paused = state.paused()
    if paused is not None:
        return f"paused: {paused}; `vitline retrain CONFIG --resume` lets rounds begin again"
    rounds = state.rounds()
    last = rounds[-1] if rounds else None
    if last is not None and last.phase == "failed" and last.ended is not None:
        left = settings.cooldown_h - (now - last.ended) / _HOUR_S
        if left > 0:
            return f"cooling down for {left:.2g} h: a round failed ({last.why})"
    return None if settings.budget is None else _over(settings.budget, rounds, state, now)


def _over(budget: BudgetSettings, rounds: Sequence[Round], state: State, now: float) -> str | None:
    recent = [item for item in rounds if now - item.opened < budget.days * _DAY_S]
    runs = [name for item in recent for name in (item.run, item.champion_run)]
    spent = sum(device_hours(state.run_dir(name)) for name in runs)
    if spent < budget.device_hours:
        return None
    return (
        f"the budget is spent: {spent:.3g} of {budget.device_hours:g} device hours, by {len(recent)} rounds"
        f" of the last {budget.days:g} days"
    )


def device_hours(run: RunDir) -> float:
    """Device hours of the trainings that a run did itself; of one without an end, those of its attempts.

    What was linked from an earlier round was paid for there.
    """
    jobs = [path for path in run.jobs.glob("*") if path.is_dir() and not path.is_symlink()]
    return sum(_of_job(path) for path in jobs)


def _of_job(path: Path) -> float:
    job = JobDir(path)
    result = job.read_result()
    if result is not None:
        return float(result["metrics"].get("cost/device_hours", 0.0))
    spans: list[tuple[float, float, int]] = []
    for event in read_events(job.events)[0]:
        if event["event"] == "start":
            spans.append((event["time"], event["time"], int(event["world"])))
        elif spans:
            began, _, world = spans[-1]
            spans[-1] = (began, event["time"], world)
    return sum((last - began) * world for began, last, world in spans) / _HOUR_S

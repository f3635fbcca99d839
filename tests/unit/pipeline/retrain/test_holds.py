"""What keeps a round from beginning, on rounds written by hand: pause, cooldown, budget, too little data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.config import BudgetSettings, NewDataSettings, RetrainSettings, RunConfig
from pipeline.events import EventLog
from pipeline.retrain.freshness import Found, decide
from pipeline.retrain.holds import device_hours, why_held
from pipeline.retrain.opening import Scene, wanted
from pipeline.retrain.state import Phase, Round, SeenShard, State
from pipeline.rundir import RunDir, write_json
from pipeline.tracking_registry import Registry
from tests.helpers.shards import write_tar
from tests.helpers.synthetic_run import synthetic_config

HOUR_S, DAY_S = 3600.0, 86_400.0


def shard(name: str, samples: int = 100) -> SeenShard:
    return SeenShard(name, 1, 1, samples, f"sha of {name}")


def write_round(state: State, name: str, opened: float, phase: Phase, *shards: SeenShard) -> Round:
    made = Round(
        key=name,
        run=name,
        reason="new samples",
        opened=opened,
        fence=1,
        data="d",
        shards=shards,
        new_samples=1,
        phase=phase,
        ended=opened + HOUR_S,
        why="no room",
    )
    state.write(made)
    return made


def settings(**changes: Any) -> RetrainSettings:
    return RetrainSettings.model_validate({"data": {"watch": "incoming"}, **changes})


def train(run: RunDir, name: str, *, hours: float | None, attempts: int = 1, ranks: int = 2) -> None:
    """A training that took `hours` of devices; None: one without an end, half an hour an attempt."""
    job = run.job(name)
    if hours is not None:
        write_json(job.result, {"metrics": {"cost/device_hours": hours}})
        return
    log = EventLog(job.events)
    for attempt in range(attempts):
        log({"event": "start", "time": attempt * DAY_S, "world": ranks})
        log({"event": "progress", "time": attempt * DAY_S + HOUR_S / 2})
    log.close()


def test_nothing_holds_by_default(tmp_path: Path) -> None:
    state = State(tmp_path)
    write_round(state, "a", 0, "failed")
    assert why_held(settings(), state, HOUR_S) is None


def test_after_a_failure_it_cools_down(tmp_path: Path) -> None:
    state = State(tmp_path)
    write_round(state, "a", 0, "failed")
    held = why_held(settings(cooldown_h=6), state, 3 * HOUR_S)
    assert held == "cooling down for 4 h: a round failed (no room)"
    assert why_held(settings(cooldown_h=6), state, 7.1 * HOUR_S) is None
    write_round(state, "b", 2 * HOUR_S, "rejected")
    assert why_held(settings(cooldown_h=6), state, 3.5 * HOUR_S) is None


def test_the_budget_counts_the_trainings_of_the_last_days(tmp_path: Path) -> None:
    state = State(tmp_path)
    for day, name in ((0, "old"), (20, "new")):
        train(state.run_dir(name), "pretrain", hours=3)
        write_round(state, name, day * DAY_S, "promoted")
    tight = settings(budget=BudgetSettings(device_hours=6, days=30))
    held = why_held(tight, state, 25 * DAY_S)
    assert held == "the budget is spent: 6 of 6 device hours, by 2 rounds of the last 30 days"
    # The first is no longer among them.
    assert why_held(tight, state, 31 * DAY_S) is None
    assert why_held(settings(budget=BudgetSettings(device_hours=6.1)), state, 25 * DAY_S) is None


def test_device_hours_are_of_what_the_run_did_itself(tmp_path: Path) -> None:
    run, earlier = RunDir(tmp_path / "run"), RunDir(tmp_path / "earlier")
    train(run, "ended", hours=2)
    train(run, "died", hours=None, attempts=3, ranks=2)
    train(earlier, "linked", hours=50)
    (run.jobs / "linked").symlink_to(earlier.job("linked").path)
    write_json(run.job("prepared").result, {"metrics": {"data/train_samples": 5.0}})
    assert device_hours(run) == pytest.approx(2 + 3 * 0.5 * 2)


def test_a_share_of_the_last_rounds_data_has_to_be_new() -> None:
    last = Round(
        key="k", run="r", reason="", opened=0, fence=1, data="d", shards=(shard("a", 1000),), new_samples=1
    )
    found = Found(shards=(shard("a", 1000), shard("b", 99)), waiting=())
    asked = NewDataSettings(watch="incoming", min_new_samples=50, min_new_fraction=0.1)
    fresh = decide(asked, found, last, now=0)
    assert (fresh.due, fresh.reason) == (False, "99 new samples, fewer than 100")
    assert decide(asked.model_copy(update={"min_new_fraction": 0.099}), found, last, now=0).due
    # The first round has none before it.
    assert decide(asked, Found(shards=(shard("b", 99),), waiting=()), None, now=0).due


def test_a_pause_holds_what_is_due_and_force_goes_through_it(tmp_path: Path) -> None:
    (tmp_path / "incoming").mkdir()
    write_tar(tmp_path / "incoming" / "a.tar", {"0.jpg": b"pixels", "0.cls": b"0"})
    plain = synthetic_config(tmp_path / "runs").model_dump(mode="json")
    plain["datasets"]["glyphs"] = {"source": "webdataset", "train": "unused.tar", "test": "unused.tar"}
    plain["retrain"] = {"data": {"watch": "incoming", "settle_s": 0}}
    config, state = RunConfig.model_validate(plain), State(tmp_path / "state")
    scene = Scene(config, state, cast(Registry, None), tmp_path, lambda: 2e9)
    assert wanted(scene, None)[1].due
    state.pause("the cluster moves")
    held = wanted(scene, None)[1]
    assert not held.due
    assert held.reason.startswith("paused: the cluster moves; ")
    assert held.reason.endswith("(due: 1 new samples)")
    assert wanted(scene, "now")[1].due
    assert json.loads((state.path / "paused.json").read_text()) == {"reason": "the cluster moves"}
    state.pause(None)
    assert wanted(scene, None)[1].due

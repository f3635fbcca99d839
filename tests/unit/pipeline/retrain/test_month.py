"""A month of ticks: the real state machine, lease and SQLite registry; the trainings are invented.

Data arrives on some days; one drop has shuffled labels, one tick is killed, two ticks overlap, one run dies.
At the end the registry stands where it should, and every decision is explained by its stored evidence.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from launch.retrain import pause
from pipeline.config_io import load_config
from pipeline.errors import Busy, UserError
from pipeline.retrain.opening import Scene
from pipeline.retrain.promotion import promote_by_hand, roll_back
from pipeline.retrain.tick import Answer, RunState
from pipeline.rundir import read_json
from pipeline.tracking_registry import PREVIOUS
from tests.helpers.month import BAD, GOOD, Month, Trainer, drop


@pytest.fixture
def month(tmp_path: Path) -> Month:
    return Month(tmp_path)


def test_a_month(month: Month) -> None:
    """Thirty days: arrivals on 1, 5, 9 (shuffled labels), 14, 20 and 26."""
    shuffled = "day-09"

    def accuracy(pattern: str) -> float:
        return BAD if shuffled in pattern else GOOD + 0.002 * pattern.count("day-")

    month.trainer = Trainer(accuracy)
    decisions: dict[int, str] = {}
    for day in range(1, 31):
        month.day = day + 1
        if day in (1, 5, 9, 14, 20, 26):
            drop(month.watch, day)
        if day == 11:
            # Somebody saw the gate's answer and took the bad drop away.
            (month.watch / f"{shuffled}.tar").unlink()
        if day == 14:
            _killed_in_the_middle(month)
        if day == 20:
            _overlapping(month)
        decisions[day] = month.tick().decision
    acted = {day: decision for day, decision in decisions.items() if decision != "skipped"}
    assert acted == {1: "promoted", 5: "promoted", 9: "rejected", 14: "promoted", 26: "promoted"}
    versions = month.registry.versions()
    assert [version.tags["gate"] for version in versions] == ["pass", "pass", "fail", "pass", "pass", "pass"]
    assert month.champion() == "6"
    previous = month.registry.at(PREVIOUS)
    assert previous is not None
    assert previous.number == "5"
    _explained(month)


def _killed_in_the_middle(month: Month) -> None:
    month.dies_in_the_middle()
    assert month.state.lease.exists()
    assert month.state.current() is not None


def _overlapping(month: Month) -> None:
    """A tick meets another one at work; the data of the day is trained on once."""
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        leave.wait(60)

    month.trainer.before_start = wait
    answers: list[Answer] = []
    first = threading.Thread(target=lambda: answers.append(month.tick()))
    first.start()
    assert inside.wait(60)
    with pytest.raises(Busy):
        month.tick()
    leave.set()
    first.join(60)
    month.trainer.before_start = lambda: None
    assert [answer.decision for answer in answers] == ["promoted"]


def _explained(month: Month) -> None:
    """Every round's end follows from the numbers that are kept with it."""
    names = {"pass": "promoted", "fail": "rejected", "inconclusive": "inconclusive"}
    for item in month.state.rounds():
        gate = read_json(month.state.gate(item.run))
        assert gate is not None
        assert item.phase == names[gate["verdict"]]
        bounds = [entry["bound_pp"] for entry in gate["datasets"] if entry["bound_pp"] is not None]
        if item.champion is not None:
            assert bounds
            assert (min(bounds) > -gate["margin_pp"]) == (gate["verdict"] == "pass")
        assert month.registry.version(str(item.version)).tags["run"] == item.run
    noted = [event["decision"] for event in month.state.history()]
    assert noted.count("lease_taken") == 1, "a tick was killed on day 14"
    assert len(noted) == 32
    assert all(event["why"] for event in month.state.history())


def test_a_run_that_dies_is_tried_again_and_then_held(month: Month) -> None:
    drop(month.watch, 1)
    month.day = 3
    month.trainer.answers = [RunState(running=False, exit_code=code) for code in (None, 75, 7)]
    answer = month.tick()
    assert answer.decision == "failed"
    assert len(month.trainer.started) == 3
    assert month.tick().decision == "skipped"
    assert "held" in month.state.history()[-1]["why"]
    assert month.tick(force="mended").decision == "promoted"


def test_settings_that_cannot_help_are_not_tried_again(month: Month) -> None:
    drop(month.watch, 1)
    month.day = 3
    month.trainer.answers = [RunState(running=False, exit_code=4)]
    assert month.tick().decision == "failed"
    assert len(month.trainer.started) == 1


def test_a_stale_tick_moves_nothing(month: Month) -> None:
    drop(month.watch, 1)
    month.day = 3
    month.trainer.before_start = lambda: month.state.next_fence() and None
    with pytest.raises(Busy, match="has begun while"):
        month.tick()
    assert month.champion() is None


GOING = RunState(running=True)


def _data_while_a_run_goes_on(tmp_path: Path, policy: str, answers: list[RunState]) -> tuple[Month, Answer]:
    """A run that was started on day 3, and what the tick of day 5 says, after the drop of day 3."""
    month = Month(tmp_path, overlap=policy)
    drop(month.watch, 1)
    month.day = 3
    month.trainer.answers = [GOING]
    assert month.tick().decision == "started"
    drop(month.watch, 3)
    month.day = 5
    month.trainer.answers = answers
    return month, month.tick()


@pytest.mark.parametrize("policy", ["skip", "queue"])
def test_what_comes_while_a_run_goes_on_waits_for_the_next_tick(tmp_path: Path, policy: str) -> None:
    month, answer = _data_while_a_run_goes_on(tmp_path, policy, [GOING, GOING])
    assert answer.decision == "running"
    assert [item.phase for item in month.state.rounds()] == ["submitted"]
    assert (month.state.queued() is not None) == (policy == "queue")
    month.trainer.answers = []
    assert month.tick().decision == "promoted", "the run on the data of day 1"
    # Since then more is asked for than came: only what was queued runs all the same.
    data = month.config.retrain.data.model_copy(update={"min_new_samples": 9})  # type: ignore[union-attr]
    retrain = month.config.retrain.model_copy(update={"data": data})  # type: ignore[union-attr]
    config = month.config.model_copy(update={"retrain": retrain})
    month.scene = Scene(config, month.state, month.registry, tmp_path, month.scene.clock)
    answer = month.tick()
    samples = [item.samples for item in month.state.rounds()]
    if policy == "skip":
        assert (answer.decision, samples) == ("skipped", [8])
    else:
        assert (answer.decision, samples) == ("promoted", [8, 16])
        assert month.state.rounds()[-1].reason.startswith("queued: ")
        assert month.state.queued() is None
        assert month.tick().decision == "skipped"


def test_what_comes_while_a_run_goes_on_may_replace_it(tmp_path: Path) -> None:
    stopped = RunState(running=False, exit_code=75)
    month, answer = _data_while_a_run_goes_on(tmp_path, "replace", [GOING, stopped])
    assert month.trainer.stopped == [month.trainer.started[0]]
    assert answer.decision == "promoted"
    assert [item.phase for item in month.state.rounds()] == ["replaced", "promoted"]
    assert [item.samples for item in month.state.rounds()] == [8, 16]


def test_rollback_blocks_what_was_left(month: Month) -> None:
    for day in (1, 4):
        drop(month.watch, day)
        month.day = day + 1
        assert month.tick().decision == "promoted"
    assert roll_back(month.registry, None, "wrong labels") == ("2", "1")
    assert month.champion() == "1"
    assert month.registry.version("2").blocked == "wrong labels"
    with pytest.raises(Exception, match="taken back"):
        promote_by_hand(month.registry, "2", None)
    assert promote_by_hand(month.registry, "2", "they were right after all")[0] == "2"
    assert month.champion() == "2"


def test_manual_approval_waits(tmp_path: Path) -> None:
    month = Month(tmp_path, gate={"approve": "manual", "disjoint": False})
    drop(month.watch, 1)
    month.day = 3
    assert month.tick().decision == "waiting"
    assert month.champion() is None
    promote_by_hand(month.registry, None, None)
    assert month.champion() == "1"


def test_the_state_is_rebuilt_from_the_runs(month: Month) -> None:
    drop(month.watch, 1)
    month.day = 3
    month.tick()
    for file in month.state.path.glob("*.json*"):
        file.unlink()
    assert month.tick().decision == "skipped"
    config = load_config(month.state.run_dir(month.trainer.started[0]).config)
    assert config.retrain is None


def test_a_round_begins_with_the_champions_weights(tmp_path: Path) -> None:
    month = Month(tmp_path, start="champion")
    for day in (1, 4):
        drop(month.watch, day)
        month.day = day + 1
        month.tick()
    first, second = month.state.rounds()
    assert first.start is None
    assert second.start is not None
    tags = month.registry.version("1").tags
    assert Path(second.start).parent.name == "v1"
    assert second.champion == "1"
    assert tags["gate"] == "pass"


def test_paused_from_the_command_nothing_begins(
    month: Month, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(month.state.path.parents[2])
    drop(month.watch, 1)
    month.day = 3
    pause(month.config, "the cluster moves")
    assert capsys.readouterr().out == "synthetic: paused: the cluster moves\n"
    assert month.tick().why.startswith("paused: the cluster moves; ")
    pause(month.config, None)
    with pytest.raises(UserError, match="no pause"):
        pause(month.config, None)
    assert month.tick().decision == "promoted"
    noted = [event["decision"] for event in month.state.history()]
    assert noted == ["paused", "skipped", "resumed", "promoted"]


def test_a_tick_that_ended_in_order_pings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    month, pings = Month(tmp_path, ping_env="PING"), list[str]()
    monkeypatch.setattr("pipeline.retrain.tick.ping", pings.append)
    assert month.tick().decision == "skipped"
    assert pings == ["PING"]
    month.watch.rmdir()
    with pytest.raises(UserError, match="no directory"):
        month.tick()
    assert pings == ["PING"]

"""A month of ticks: the real state machine, lease and SQLite registry; the trainings are invented.

Data arrives on some days; one drop has shuffled labels, one tick is killed, two ticks overlap, one run dies.
At the end the registry stands where it should, and every decision is explained by its stored evidence.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.config import RunConfig
from pipeline.config_io import load_config
from pipeline.errors import Busy
from pipeline.retrain.opening import Scene
from pipeline.retrain.promotion import promote_by_hand, roll_back
from pipeline.retrain.state import State
from pipeline.retrain.tick import Answer, RunState, Ticker
from pipeline.rundir import RunDir, read_json
from pipeline.tracking_registry import CHAMPION, PREVIOUS, Registry
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

DAY_S = 86_400.0
GOOD, BAD = 0.90, 0.55


def drop(directory: Path, day: int, samples: int = 8) -> None:
    """A shard of `samples` that arrived on `day` and has settled."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"day-{day:02d}.tar"
    with tarfile.open(path, "w") as tar:
        for n in range(samples):
            for name, content in ((f"{day}-{n}.jpg", b"pixels"), (f"{day}-{n}.cls", b"0")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    os.utime(path, (day * DAY_S, day * DAY_S))


class Trainer:
    """Finishes a run as soon as it is looked at; accuracy by the newest data that it saw."""

    def __init__(self, accuracy: Callable[[str], float]) -> None:
        self.accuracy = accuracy
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.answers: list[RunState] = []
        self.before_start: Callable[[], None] = lambda: None

    def start(self, config: RunConfig, run: RunDir) -> dict[str, Any]:
        self.before_start()
        self.started.append(run.path.name)
        pattern = config.datasets["glyphs"].train  # type: ignore[union-attr]
        share = self.accuracy(str(pattern))
        # What was reused, or an earlier attempt left, is written anew.
        for found in run.jobs.iterdir():
            found.unlink() if found.is_symlink() else shutil.rmtree(found)
        made = write_synthetic_run(config, accuracy=lambda dataset, start, seed: share, images=2000)
        network = create_model("vit_ti16", num_classes=2, image_size=32, depth=1, width=48, heads=1)
        header = {"classes": '["a", "b"]', "preprocessing": "{}"}
        weights = run.job(made.digests["pretrain"]).weights
        save_weights(weights, network.state_dict(), network.config.to_dict(), header)
        return {"since": 0}

    def look(self, run: RunDir, record: dict[str, Any]) -> RunState:
        return self.answers.pop(0) if self.answers else RunState(running=False, exit_code=0)

    def stop(self, run: RunDir, record: dict[str, Any]) -> None:
        self.stopped.append(run.path.name)


class Month:
    def __init__(self, home: Path, **retrain: Any) -> None:
        self.day = 0
        self.watch = home / "incoming"
        self.watch.mkdir()
        base = synthetic_config(home / "runs").model_dump(mode="json")
        base["datasets"]["glyphs"] = {"source": "webdataset", "train": "unused.tar", "test": "unused.tar"}
        base["retrain"] = {
            "data": {"watch": str(self.watch), "min_new_samples": 8, "settle_s": 3600},
            "gate": {"margin_pp": 2.0},
            **retrain,
        }
        self.config = RunConfig.model_validate(base)
        self.registry = Registry(f"sqlite:///{home / 'mlflow.db'}", "vitline", "classifier")
        self.state = State(home / "runs" / "synthetic" / "retrain")
        self.trainer = Trainer(lambda pattern: GOOD)
        self.scene = Scene(self.config, self.state, self.registry, home, lambda: self.day * DAY_S)

    def ticker(self) -> Ticker:
        return Ticker(self.scene, self.trainer)

    def tick(self, **options: Any) -> Answer:
        return self.ticker().tick(**options)

    def champion(self) -> str | None:
        version = self.registry.at(CHAMPION)
        return version.number if version else None


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
    """A tick that dies while it holds the lease and the round is begun."""
    pid = os.fork()
    if pid == 0:
        month.trainer.before_start = lambda: os._exit(9)
        month.tick()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
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
    assert len(noted) == 31
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


@pytest.mark.parametrize("policy", ["skip", "queue", "replace"])
def test_new_data_while_a_run_goes_on(tmp_path: Path, policy: str) -> None:
    month = Month(tmp_path, overlap=policy)
    drop(month.watch, 1)
    month.day = 3
    going = RunState(running=True)
    month.trainer.answers = [going]
    assert month.tick().decision == "started"
    drop(month.watch, 3)
    month.day = 5
    month.trainer.answers = {
        "skip": [going],
        "queue": [going, going],
        "replace": [going, RunState(running=False, exit_code=75)],
    }[policy]
    answer = month.tick()
    rounds = [item.phase for item in month.state.rounds()]
    if policy == "replace":
        assert month.trainer.stopped == [month.trainer.started[0]]
        assert answer.decision == "promoted"
        assert rounds == ["replaced", "promoted"]
    else:
        assert answer.decision == "running"
        assert (month.state.queued() is not None) == (policy == "queue")
        assert rounds == ["submitted"]


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
    month = Month(tmp_path, gate={"approve": "manual"})
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

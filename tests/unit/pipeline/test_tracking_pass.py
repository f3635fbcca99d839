"""The pass against a store in memory that fails wherever it can: everything arrives, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.events import EventLog
from pipeline.tracking_pass import Away, Refused, Sender
from pipeline.tracking_state import Cursor, Point
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run, write_training


@dataclass
class Row:
    """One run in the store; equal points are kept once, as MLflow does."""

    name: str
    tags: dict[str, str]
    started: float
    status: str = "RUNNING"
    ended: float = 0.0
    points: set[Point] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    datasets: set[tuple[str, str, str]] = field(default_factory=set)
    files: set[str] = field(default_factory=set)


class MemoryStore:
    """Keeps runs by id; the call number `fail_at` fails, before or after it took effect."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.calls = 0
        self.created = 0
        self.fail_at = -1
        self.after = False
        self.refuses = ""
        self.on_failure: Any = None

    def _run(self, effect: Any) -> Any:
        self.calls += 1
        failing = self.calls == self.fail_at
        if failing:
            self.on_failure()
        if failing and not self.after:
            raise Away("before")
        result = effect()
        if failing:
            raise Away("after")
        return result

    experiment = "7"

    def open(self) -> bool:
        return bool(self._run(lambda: True))

    def has(self, run_id: str) -> bool:
        return bool(self._run(lambda: run_id in self.rows))

    def find_parent(self, key: str) -> str:
        return str(self._run(lambda: self._find("vitline.key", key)))

    def find_child(self, parent_id: str, digest: str) -> str:
        return str(self._run(lambda: self._find("vitline.job", digest)))

    def _find(self, tag: str, value: str) -> str:
        return next((run_id for run_id, row in self.rows.items() if row.tags.get(tag) == value), "")

    def create(self, name: str, started: float, tags: Mapping[str, str]) -> str:
        def effect() -> str:
            self.created += 1
            self.rows[f"r{self.created}"] = Row(name, dict(tags), started)
            return f"r{self.created}"

        return str(self._run(effect))

    def reopen(self, run_id: str) -> None:
        self._run(lambda: setattr(self.rows[run_id], "status", "RUNNING"))

    def end(self, run_id: str, status: str, time: float) -> None:
        def effect() -> None:
            self.rows[run_id].status, self.rows[run_id].ended = status, time

        self._run(effect)

    def send(
        self,
        run_id: str,
        found: Sequence[Point] = (),
        values: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        row = self.rows[run_id]
        if self.refuses and row.name == self.refuses:
            raise Refused("no such thing")

        assert not is_new or not row.values

        def effect() -> None:
            row.points.update(found)
            row.values.update({k: v for k, v in (values or {}).items() if k not in row.values})
            row.tags.update(tags or {})

        self._run(effect)

    def send_datasets(self, run_id: str, datasets: Sequence[tuple[str, str, str]]) -> None:
        self._run(lambda: self.rows[run_id].datasets.update(datasets))

    def upload(self, run_id: str, path: Path, directory: str) -> None:
        self._run(lambda: self.rows[run_id].files.add(f"{directory}/{path.name}".strip("/")))

    def remove_ghosts(self, parent_id: str, key: str, kept: Mapping[str, str]) -> None:
        self._run(lambda: None)

    def content(self) -> dict[str, Any]:
        """Everything but the random names."""
        rows = {row.name: row for row in self.rows.values()}
        assert len(rows) == len(self.rows), "two runs of one name"
        drop = ("vitline.key", "mlflow.parentRunId")
        return {
            name: [
                sorted(item for item in row.tags.items() if item[0] not in drop),
                (row.started, row.status, row.ended),
                sorted(row.points, key=str),
                (row.values, row.datasets, row.files),
            ]
            for name, row in rows.items()
        }


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SyntheticRun:
    monkeypatch.setattr("os.fsync", lambda _: None)
    config = synthetic_config(tmp_path)
    small = config.model_dump(mode="json")
    small["transfer"] |= {"datasets": ["digits"], "seeds": [0]}
    made = write_synthetic_run(type(config).model_validate(small), images=20)
    # Reading a whole configuration hundreds of times is all that would take time here.
    made.run.config.write_text("name: synthetic\npretrain: {batch: 128}\n")
    made.run.report.mkdir()
    (made.run.report / "report.html").write_text("<p>")
    return made


def sender(made: SyntheticRun, store: MemoryStore) -> Sender:
    return Sender(made.run, "synthetic", store, Cursor.load(made.run.tracking, "memory"))


def test_a_finished_run_arrives_whole(made: SyntheticRun) -> None:
    store = MemoryStore()
    sender(made, store).send_all()
    parent = store.rows["r1"]
    assert (parent.name, parent.status) == ("synthetic", "FINISHED")
    assert parent.files == {"config.resolved.yaml", "report/report.html"}
    assert parent.values["pretrain.batch"] == "128"
    children = [row for row in store.rows.values() if row.tags.get("mlflow.parentRunId") == "r1"]
    assert sorted(row.name for row in children) == sorted(made.digests)
    assert {row.status for row in children} == {"FINISHED"}
    by_name = {row.name: row for row in children}
    pretrain = by_name["pretrain"]
    losses = sorted((p.step, p.value) for p in pretrain.points if p.key == "train/loss")
    assert [step for step, _ in losses] == list(range(10, 301, 10))
    evaluate = by_name["evaluate/digits/pretrained/seed0"]
    assert evaluate.files == {"predictions.parquet"}
    assert [(name, context) for name, _, context in evaluate.datasets] == [("digits", "test")]
    assert by_name["finetune/digits/pretrained/seed0"].values["learning_rate"] == "0.03"
    assert len(parent.datasets) == 4  # two prepared datasets, two splits each


def test_nothing_is_sent_twice(made: SyntheticRun) -> None:
    store = MemoryStore()
    sender(made, store).send_all()
    calls = store.calls
    sender(made, store).send_all()
    assert store.calls - calls <= 2  # the store is opened and the parent looked for


@pytest.mark.parametrize("after", [False, True])
def test_a_fault_in_any_call_loses_and_doubles_nothing(made: SyntheticRun, after: bool) -> None:
    undisturbed = MemoryStore()
    sender(made, undisturbed).send_all()
    expected = undisturbed.content()
    for fail_at in range(1, undisturbed.calls + 1):
        for killed in (False, True):
            made.run.tracking.unlink(missing_ok=True)
            store = MemoryStore()
            store.fail_at, store.after = fail_at, after
            left: list[bytes] = []
            store.on_failure = lambda left=left: left.extend(
                path.read_bytes() for path in [made.run.tracking] if path.exists()
            )
            with pytest.raises(Away):
                sender(made, store).send_all()
            if killed:
                # The driver went with the call: nothing was written after it.
                made.run.tracking.unlink()
                for content in left:
                    made.run.tracking.write_bytes(content)
            sender(made, store).send_all()
            assert store.content() == expected, f"call {fail_at}, killed {killed}"


def test_events_are_followed_as_they_come(made: SyntheticRun) -> None:
    store = MemoryStore()
    following = sender(made, store)
    following.send_all()
    digest = made.digests["finetune/digits/scratch/seed0"]
    log = EventLog(made.run.events)
    log({"event": "run", "state": "started", "name": "synthetic"})
    event = {"event": "job", "digest": digest, "name": "finetune/digits/scratch/seed0", "stage": "finetune"}
    log({**event, "state": "running"})
    following.send_all()
    row = next(row for row in store.rows.values() if row.tags.get("vitline.job") == digest)
    assert (row.status, store.rows["r1"].status) == ("RUNNING", "RUNNING")
    log({**event, "state": "failed", "reason": "out of memory"})
    log({"event": "run", "state": "failed"})
    log.close()
    following.send_all()
    assert (row.status, store.rows["r1"].status) == ("FAILED", "FAILED")


def test_steps_redone_after_a_resume_are_not_doubled(made: SyntheticRun) -> None:
    digest = made.digests["pretrain"]
    made.run.job(digest).events.unlink()
    write_training(made.run, digest, steps=300, last=150, done=False)
    write_training(made.run, digest, steps=300, first=100, time=1_700_009_000.0, attempt=2)
    store = MemoryStore()
    sender(made, store).send_all()
    row = next(row for row in store.rows.values() if row.name == "pretrain")
    steps = sorted(p.step for p in row.points if p.key == "train/loss")
    assert steps == list(range(10, 301, 10))
    assert row.tags["vitline.attempt"] == "2"


def test_a_job_that_is_refused_does_not_hold_up_the_rest(
    made: SyntheticRun, caplog: pytest.LogCaptureFixture
) -> None:
    store = MemoryStore()
    store.refuses = "evaluate/digits/scratch/seed0"
    sender(made, store).send_all()
    statuses = {row.name: row.status for row in store.rows.values()}
    assert statuses.pop(store.refuses) == "RUNNING"
    assert set(statuses.values()) == {"FINISHED"}
    assert "MLflow refuses evaluate/digits/scratch/seed0" in caplog.text


def test_a_store_that_was_wiped_gets_everything_again(made: SyntheticRun) -> None:
    first, second = MemoryStore(), MemoryStore()
    sender(made, first).send_all()
    sender(made, second).send_all()
    assert second.content() == first.content()


def test_a_run_without_events_makes_nothing(tmp_path: Path, made: SyntheticRun) -> None:
    made.run.events.unlink()
    store = MemoryStore()
    sender(made, store).send_all()
    assert store.calls == 0


def test_a_result_made_again_gets_a_run_of_its_own(made: SyntheticRun) -> None:
    store = MemoryStore()
    following = sender(made, store)
    following.send_all()
    digest = made.digests["pretrain"]
    old = next(run_id for run_id, row in store.rows.items() if row.name == "pretrain")
    # As the driver does when it is told to run a stage again: the old directory is moved away.
    made.run.job(digest).events.unlink()
    write_training(made.run, digest, steps=300, time=1_700_009_000.0)
    log = EventLog(made.run.events)
    log({"event": "run", "state": "started", "name": "synthetic"})
    for state in ("running", "done"):
        log({"event": "job", "digest": digest, "name": "pretrain", "stage": "pretrain", "state": state})
    log({"event": "run", "state": "finished"})
    log.close()
    following.send_all()
    assert store.rows[old].tags["vitline.job"] == f"{digest} replaced"
    (new,) = [row for row in store.rows.values() if row.tags.get("vitline.job") == digest]
    assert len([p for p in new.points if p.key == "train/loss"]) == 30
    assert min(p.time_ms for p in new.points if p.key == "train/loss") > 1_700_009_000_000

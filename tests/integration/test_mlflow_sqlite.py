"""The mirror on a real SQLite store."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config import RunConfig, TrackingSettings
from pipeline.events import EventLog
from pipeline.rundir import read_json, write_json
from pipeline.tracking import Mirror, MlflowStore
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run, write_training


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables and nothing in them: making them takes MLflow seconds."""
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    assert MlflowStore(f"sqlite:///{path}", "another").open()
    return path


@pytest.fixture
def made(tmp_path: Path, empty_store: Path) -> SyntheticRun:
    (tmp_path / "my runs").mkdir()
    shutil.copy(empty_store, tmp_path / "my runs" / "mlflow.db")
    plain = synthetic_config(tmp_path / "my runs").model_dump(mode="json")
    plain["transfer"] |= {"datasets": ["digits"], "seeds": [0]}
    return write_synthetic_run(RunConfig.model_validate(plain), images=20)


def mirror(made: SyntheticRun, uri: str | None = None) -> Mirror:
    return Mirror(made.run, TrackingSettings(uri=uri), name="synthetic")


def client_of(made: SyntheticRun) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{made.run.path.parent / 'mlflow.db'}")


def all_runs(client: MlflowClient) -> dict[str, object]:
    experiment = client.get_experiment_by_name("vitline")
    if experiment is None:
        return {}
    runs = list(client.search_runs([experiment.experiment_id], max_results=1000))
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs)
    return named


def test_one_parent_with_a_child_a_job(
    made: SyntheticRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mirror(made).sync()
    client = client_of(made)
    runs = all_runs(client)
    experiment = client.get_experiment_by_name(made.config.tracking.experiment)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    parent = runs.pop("synthetic")
    assert sorted(runs) == sorted(made.digests)
    for run in (parent, *runs.values()):
        assert run.info.status == "FINISHED"
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs.values())
    history = client.get_metric_history(runs["pretrain"].info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(10, 301, 10))
    # Time of the event, not of the sending.
    assert history[0].timestamp == round(1000 * (runs["pretrain"].info.start_time / 1000 + 120 * 10 / 300))
    evaluate = runs["evaluate/digits/pretrained/seed0"]
    assert evaluate.data.metrics["eval/n"] == 20
    assert evaluate.data.params["digest"] == made.digests["evaluate/digits/pretrained/seed0"]
    (dataset,) = evaluate.inputs.dataset_inputs
    assert (dataset.dataset.name, len(dataset.dataset.digest)) == ("digits", 32)
    assert [file.path for file in client.list_artifacts(evaluate.info.run_id)] == ["predictions.parquet"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["config.resolved.yaml"]
    # Artifacts lie beside the database; nothing in the working directory.
    assert {path.name for path in tmp_path.iterdir()} == {"my runs"}


def test_a_second_command_sends_nothing_of_finished_jobs(made: SyntheticRun) -> None:
    assert mirror(made).sync()
    before = {name: (run.info, run.data.to_dictionary()) for name, run in all_runs(client_of(made)).items()}
    log = EventLog(made.run.events)
    log({"event": "run", "state": "started", "name": "synthetic"})
    for name, digest in made.digests.items():
        log({"event": "job", "digest": digest, "name": name, "stage": "x", "state": "skipped"})
    log({"event": "run", "state": "finished"})
    log.close()
    assert mirror(made).sync()
    after = {name: (run.info, run.data.to_dictionary()) for name, run in all_runs(client_of(made)).items()}
    assert before.keys() == after.keys()
    for name in before.keys() - {"synthetic"}:
        assert str(before[name]) == str(after[name])
    assert after["synthetic"][1]["tags"]["vitline.attempt"] == "2"
    assert after["synthetic"][0].status == "FINISHED"


def test_a_thread_follows_a_run_that_is_going_on(made: SyntheticRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.tracking.INTERVAL_S", 0.05)
    digest = made.digests["pretrain"]
    made.run.events.unlink()
    made.run.job(digest).events.unlink()
    following = mirror(made)
    following.start()
    log = EventLog(made.run.events)
    job = {"event": "job", "digest": digest, "name": "pretrain", "stage": "pretrain"}
    log({"event": "run", "state": "started", "name": "synthetic"})
    log({**job, "state": "running"})
    write_training(made.run, digest, steps=300, last=100, done=False)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        runs = all_runs(client_of(made))
        if "pretrain" in runs and runs["pretrain"].data.metrics.get("cost/images_seen"):
            break
        time.sleep(0.1)
    assert runs["pretrain"].info.status == "RUNNING"
    write_training(made.run, digest, steps=300, first=100)
    log({**job, "state": "done"})
    log({"event": "run", "state": "stopped"})
    log.close()
    assert following.close(30)
    runs = all_runs(client_of(made))
    assert (runs["pretrain"].info.status, runs["synthetic"].info.status) == ("FINISHED", "KILLED")
    history = client_of(made).get_metric_history(runs["pretrain"].info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(10, 301, 10))


def test_a_store_that_cannot_be_opened_yet_gets_everything_later(
    made: SyntheticRun, tmp_path: Path, empty_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "later").write_text("a file where the directory should be")
    following = mirror(made, f"sqlite:///{tmp_path}/later/mlflow.db")
    assert not following.sync()
    assert not following.sync()
    assert caplog.text.count("training goes on") == 1
    (tmp_path / "later").unlink()
    (tmp_path / "later").mkdir()
    shutil.copy(empty_store, tmp_path / "later" / "mlflow.db")
    assert following.sync()


def test_not_a_number_arrives(made: SyntheticRun) -> None:
    digest = made.digests["pretrain"]
    log = EventLog(made.run.job(digest).events)
    log({"event": "progress", "step": 310, "loss": float("nan")})
    log.close()
    assert mirror(made).sync()
    client = client_of(made)
    run = all_runs(client)["pretrain"]
    assert client.get_metric_history(run.info.run_id, "train/loss")[-1].step == 310


def test_a_deleted_parent_is_made_again(made: SyntheticRun) -> None:
    assert mirror(made).sync()
    client = client_of(made)
    for run in all_runs(client).values():
        client.delete_run(run.info.run_id)
    assert mirror(made).sync()
    again = all_runs(client)
    assert len(again) == 1 + len(made.digests)
    assert {run.info.status for run in again.values()} == {"FINISHED"}


def test_a_deleted_child_is_left_out(made: SyntheticRun, caplog: pytest.LogCaptureFixture) -> None:
    assert mirror(made).sync()
    client = client_of(made)
    client.delete_run(all_runs(client)["pretrain"].info.run_id)
    log = EventLog(made.run.events)
    log({"event": "run", "state": "started", "name": "synthetic"})
    log(
        {
            "event": "job",
            "digest": made.digests["pretrain"],
            "name": "pretrain",
            "stage": "x",
            "state": "done",
        }
    )
    log({"event": "run", "state": "finished"})
    log.close()
    assert mirror(made).sync()
    assert "MLflow refuses pretrain" in caplog.text
    assert all_runs(client)["synthetic"].info.status == "FINISHED"


def test_a_cursor_that_lags_finds_its_runs_again(made: SyntheticRun) -> None:
    assert mirror(made).sync()
    cursor = read_json(made.run.tracking)
    assert cursor is not None
    # As after a kill between the calls and the saving.
    write_json(made.run.tracking, {**cursor, "jobs": {}, "offset": 0, "commands": 0})
    assert mirror(made).sync()
    runs = all_runs(client_of(made))
    assert len(runs) == 1 + len(made.digests)
    history = client_of(made).get_metric_history(runs["pretrain"].info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(10, 301, 10))


RACER = """
import sys, time
from pathlib import Path
from pipeline.tracking import MlflowStore
home, name = Path(sys.argv[1]), sys.argv[2]
store = MlflowStore(f"sqlite:///{home / 'mlflow.db'}", "vitline")
(home / f"ready-{name}").touch()
while not (home / "go").exists():
    time.sleep(0.005)
store.open()
print(store.experiment)
"""


@pytest.mark.slow
def test_a_fresh_store_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    """MLflow makes the tables when it first connects, and two who do that at once spoil each other's work."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path), str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        while len(list(tmp_path.glob("ready-*"))) < len(started):
            assert all(process.poll() is None for process in started)
            time.sleep(0.05)
        (tmp_path / "go").touch()
        answers = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), answers
    assert len({out for out, _ in answers}) == 1

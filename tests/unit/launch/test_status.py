"""What `vitline status` says of a run's directory: states, sums, and MLflow's ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.status import print_status
from pipeline.events import EventLog
from pipeline.rundir import RunDir, write_json
from pipeline.tracking_state import Cursor, Tracked


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A pre-training and a fine-tuning that are done, one that failed, and what needs it."""
    run = RunDir(tmp_path / "demo")
    run.path.mkdir()
    log = EventLog(run.events)
    log({"event": "run", "state": "started", "name": "demo"})
    for name, state in (
        ("pretrain", "done"),
        ("finetune/a", "done"),
        ("finetune/b", "failed"),
        ("evaluate/b", "not run"),
    ):
        stage = name.split("/")[0]
        event = {"event": "job", "digest": name.replace("/", "-"), "name": name, "stage": stage}
        log({**event, "state": state, "reason": "needs finetune/b" if state == "not run" else ""})
    log.close()
    for digest, seconds, hours in (("pretrain", 3600.0, 8.0), ("finetune-a", 1800.0, 0.5)):
        metrics = {"train/loss": 1.0, "cost/device_hours": hours}
        write_json(run.job(digest).result, {"seconds": seconds, "metrics": metrics, "outputs": {}})
    return run


def status(run: RunDir, capsys: pytest.CaptureFixture[str], price: float | None = None) -> dict[str, object]:
    print_status(str(run.path), as_json=True, price=price)
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_sums_are_those_of_the_results(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    sums = {"jobs": 4, "done": 2, "seconds": 5400.0, "device_hours": 8.5}
    assert status(run, capsys)["sums"] == {**sums, "price": None}
    assert status(run, capsys, price=2.0)["sums"] == {**sums, "price": 17.0}
    print_status(str(run.path), as_json=False, price=2.0)
    printed = capsys.readouterr().out
    assert "2 of 4 jobs done: 1.50 hours of jobs, 8.5 device-hours of training, 17.00 in all" in printed
    assert "not run" in printed
    assert "MLflow" not in printed


def test_mlflows_ids_are_those_of_the_mirror(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(run, capsys)["mlflow"] is None
    jobs = {"pretrain": Tracked("pretrain", run_id="p1"), "finetune-b": Tracked("finetune/b")}
    Cursor("sqlite:///runs/mlflow.db", parent=Tracked(run_id="r1"), jobs=jobs).save(run.tracking)
    found = status(run, capsys)
    command = "mlflow ui --backend-store-uri sqlite:///runs/mlflow.db"
    assert found["mlflow"] == {
        "store": "sqlite:///runs/mlflow.db",
        "experiment_id": "",
        "run_id": "r1",
        "url": None,
        "command": command,
    }
    rows = found["jobs"]
    assert isinstance(rows, list)
    assert [row["mlflow_run_id"] for row in rows] == ["p1", None, None, None]
    print_status(str(run.path), as_json=False)
    printed = capsys.readouterr().out
    assert "MLflow: run r1 in sqlite:///runs/mlflow.db" in printed
    assert command in printed


def test_a_run_on_a_server_has_links(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = {"pretrain": Tracked("pretrain", run_id="p1"), "finetune-b": Tracked("finetune/b")}
    store, page = "http://host:5000/", "http://host:5000/#/experiments/3/runs"
    cursor = Cursor(store, experiment="3", parent=Tracked(run_id="r1"), jobs=jobs)
    cursor.save(run.tracking)
    found = status(run, capsys)
    assert isinstance(found["mlflow"], dict)
    assert found["mlflow"]["url"] == f"{page}/r1"
    assert found["mlflow"]["command"] is None
    assert isinstance(found["jobs"], list)
    assert [row["mlflow_url"] for row in found["jobs"]] == [f"{page}/p1", None, None, None]
    print_status(str(run.path), as_json=False)
    assert f"MLflow: {page}/r1" in capsys.readouterr().out


def test_a_cursor_from_before_experiments_were_noted_has_no_link(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    Cursor("http://host:5000", parent=Tracked(run_id="r1")).save(run.tracking)
    saved = json.loads(run.tracking.read_text())
    del saved["experiment"]
    run.tracking.write_text(json.dumps(saved))
    found = status(run, capsys)
    assert isinstance(found["mlflow"], dict)
    assert found["mlflow"]["url"] is None
    print_status(str(run.path), as_json=False)
    assert "MLflow: run r1 in http://host:5000" in capsys.readouterr().out


def test_a_mirror_that_was_cut_short_is_none(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    run.tracking.write_text("{torn")
    assert status(run, capsys)["mlflow"] is None

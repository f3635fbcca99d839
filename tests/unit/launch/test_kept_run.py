"""The commands on a run whose state is kept in a bucket (moto's S3 server); all its jobs are done."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.run import dry_run, run_config
from launch.status import print_status
from pipeline.config import RunConfig
from pipeline.errors import Busy, UserError
from pipeline.graph import Selection
from pipeline.lease import Lease
from pipeline.remote_state import RemoteLease
from pipeline.rundir import RunDir, write_json
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

REMOTE = "s3://kept/runs"
URL = f"{REMOTE}/synthetic"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with s3_server() as server:
        yield empty_bucket(monkeypatch, server, "kept")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of a run in `tmp_path`/first."""
    config = synthetic_config(tmp_path / "first", remote=REMOTE, tracking={"enabled": False})
    made = write_synthetic_run(config, images=40)
    write_json(made.run.report_maker, {"digest": made.digests["compare"]})
    return config


def at(config: RunConfig, root: Path) -> RunConfig:
    return config.model_copy(update={"root": str(root)})


def run(config: RunConfig) -> None:
    def no_stop(stop: threading.Event) -> None:
        raise AssertionError("a job was due")

    run_config(config, Selection(), as_json=True, on_stop=no_stop)


def test_a_finished_run_is_finished_wherever_its_url_is_known(
    config: RunConfig, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    expected = json.loads(capsys.readouterr().out)
    shutil.rmtree(tmp_path / "first")
    assert not files.exists("kept/runs/synthetic/lease.json")

    second = at(config, tmp_path / "second")
    dry_run(second, Selection(), as_json=True)
    assert {job["state"] for job in json.loads(capsys.readouterr().out)} == {"done"}
    assert not (tmp_path / "second").exists()

    print_status(f"{URL}/", as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["driver"]) == ("synthetic", None)
    assert {job["state"] for job in told["jobs"]} == {"done"}

    run(second)
    assert json.loads(capsys.readouterr().out) == expected
    assert RunDir(tmp_path / "second" / "synthetic").result.exists()


def test_the_driver_at_the_url_is_shown_and_a_second_one_is_refused(
    config: RunConfig, files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    capsys.readouterr()
    with Lease(RemoteLease(URL)):
        print_status(URL, as_json=True)
        holder = json.loads(capsys.readouterr().out)["driver"]
        with pytest.raises(Busy, match=f"process {holder['pid']} on {holder['host']}"):
            run(at(config, tmp_path / "second"))
    assert not (tmp_path / "second" / "synthetic" / "jobs").exists()


def test_status_of_a_url_without_a_run_is_refused(files: Any) -> None:
    with pytest.raises(UserError, match=f"{REMOTE}/none holds no events.jsonl"):
        print_status(f"{REMOTE}/none", as_json=True)

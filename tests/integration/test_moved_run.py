"""A run whose machine is lost goes on elsewhere from what a bucket holds (moto's S3 server)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.config_io import load_config
from pipeline.data.mixture import open_data
from pipeline.driver import plan_run
from pipeline.events import read_events
from pipeline.rundir import RunDir
from pipeline.stages import pretrain
from pipeline.train.samplelog import read_sample_log
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.trainings import pretrain_of, progress, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SMALL = Path(__file__).parent / "small.yaml"
REMOTE = "s3://runs/of-many"
STEPS = 400
SETTINGS = [
    f"remote={REMOTE}",
    f"pretrain.duration={STEPS} steps",
    "pretrain.batch=48",
    "pretrain.model.options.width=96",
    "pretrain.model.options.depth=4",
    "transfer.datasets=[digits]",
    "transfer.seeds=[0]",
    "transfer.protocol.learning_rates=[0.1]",
]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """fsspec's file system of a server with an empty bucket."""
    with s3_server() as url:
        yield empty_bucket(monkeypatch, url, "runs")


def named(files: Any, name: str) -> list[str]:
    return [path for path in files.find("runs/of-many/small") if path.endswith(f"/{name}")]


def told(files: Any) -> set[int]:
    """Steps of the checkpoints that the events in the bucket tell of."""
    return {
        event["step"]
        for path in named(files, "events.jsonl")
        for event in map(json.loads, files.cat_file(path).splitlines())
        if event["event"] == "checkpoint"
    }


def copied(files: Any) -> set[int]:
    """Steps of the checkpoints that the ranks have put there."""
    return {json.loads(files.cat_file(path))["step"] for path in named(files, "COMPLETE")}


def undisturbed(root: Path) -> dict[int, list[int]]:
    config = load_config(SMALL, [f"root={root}", *SETTINGS])
    run = RunDir(root / "small")
    job = next(item for item in plan_run(config, run) if item.job.stage == pretrain.STAGE)
    assert job.state == "done"
    view = open_data(pretrain.data(config.pretrain, job.inputs, "train", {}), run.path)
    order, batch = view.order(config.pretrain.order, config.seed), config.pretrain.batch
    return {
        step + 1: view.sample_id(order.indices(order.batch_positions(step, batch))).tolist()
        for step in range(STEPS)
    }


def test_a_run_goes_on_where_only_its_url_is_known(
    vitline: Callable[..., Any], tmp_path: Path, bucket: Any
) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    lost = vitline("run", str(SMALL), f"root={first}", *SETTINGS)
    wait_for(lambda: told(bucket) & copied(bucket), lost.process, 300)
    for process in [*lost.descendants(), psutil.Process(lost.process.pid)]:
        process.kill()
    lost.process.wait()
    before = len(progress(first / "small"))
    assert 0 < before < STEPS
    shutil.rmtree(first)

    status = vitline("status", f"{REMOTE}/small", "--json")
    assert status.wait() == 0, status.text
    states = {job["name"]: job["state"] for job in json.loads(status.text)["jobs"]}
    assert states["prepare/glyphs"] == "done"
    assert states["pretrain"] == "interrupted"

    again = vitline("run", str(SMALL), f"root={second}", *SETTINGS)
    assert again.wait(600) == 0, again.text
    job = pretrain_of(second / "small")
    assert job is not None
    starts = [event for event in read_events(job.events)[0] if event["event"] == "start"]
    assert starts[-1]["step"] > 0, "it began anew"
    assert read_sample_log(job) == undisturbed(second)
    assert sorted({e["step"] for e in progress(second / "small")}) == list(range(1, STEPS + 1))
    # What was done on the first machine was not done again.
    driver = read_events(second / "small" / "events.jsonl")[0]
    ran = Counter(
        event["name"] for event in driver if event["event"] == "job" and event["state"] == "running"
    )
    assert ran["prepare/glyphs"] == 1
    assert ran["pretrain"] == 2

    planned = vitline("run", str(SMALL), f"root={third}", *SETTINGS, "--dry-run", "--json")
    assert planned.wait() == 0, planned.text
    assert {job["state"] for job in json.loads(planned.text)} == {"done"}
    assert not third.exists()
    assert not any("ray_token" in name for name in bucket.find("runs"))

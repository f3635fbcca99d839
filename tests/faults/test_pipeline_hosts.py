"""The whole pipeline over three hosts: the same as on one, in files and in MLflow, and isolated faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline.events import read_events
from pipeline.rundir import read_json
from tests.helpers.hosts import ROOT, Hosts
from tests.helpers.trainings import check_same, pretrain_of, trains, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = ROOT / "tests" / "integration" / "small.yaml"
STEPS = 60
# Long enough to be caught in the middle.
PRETRAIN = [
    f"pretrain.duration={STEPS} steps",
    "pretrain.batch=48",
    "pretrain.model.options.width=96",
    "pretrain.model.options.depth=4",
]
FEW = ["transfer.seeds=[0]", "transfer.protocol.learning_rates=[0.1]"]


def results_of(run: Path) -> dict[str, dict[str, Any]]:
    """Name of a job → its metrics, of all that are done."""
    found = {}
    for file in (run / "jobs").glob("*/result.json"):
        result = read_json(file)
        assert result is not None
        found[result["name"]] = result["metrics"]
    return found


def states_of(cluster: Hosts, run: Path) -> dict[str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "launch", "status", str(run), "--json"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(cluster.directory)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return {job["name"]: job["state"] for job in json.loads(result.stdout)["jobs"]}


def curves_of(root: Path, run_name: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of every point that MLflow holds of all runs of that name."""
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("vitline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    chosen = [run for run in runs if run.info.run_name == run_name]
    return [
        (point.step, point.value)
        for run in chosen
        for point in client.get_metric_history(run.info.run_id, key)
    ]


def test_three_hosts_give_what_one_gives_and_mlflow_has_it_once(
    hosts: Callable[..., Hosts], tmp_path: Path
) -> None:
    """The driver is killed in the middle of the pre-training and started again on the same host."""
    one = tmp_path / "one"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch", "run", str(SMALL), f"root={one}", *PRETRAIN, *FEW),
            *("pretrain.gang.workers=1", "tracking.enabled=false"),
        ],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    cluster = hosts(3)
    root = tmp_path / "three"
    run = root / "small"
    process = cluster.run(str(SMALL), f"root={root}", *PRETRAIN, *FEW)
    wait_for(lambda: trains(run, step=STEPS // 3), process)
    process.kill()
    process.wait()
    again = cluster.run(str(SMALL), f"root={root}", *PRETRAIN, *FEW)
    assert again.wait(900) == 0, cluster.output()
    check_same(run, one / "small", STEPS)

    expected, found = results_of(one / "small"), results_of(run)
    assert set(found) == set(expected)
    for name in (name for name in expected if name.startswith("evaluate/")):
        assert found[name]["eval/n"] == expected[name]["eval/n"]
        # The networks differ by the rounding of their pre-training, those from scratch by nothing.
        tolerance = 0 if "/scratch/" in name else 0.02
        assert found[name]["eval/top1"] == pytest.approx(expected[name]["eval/top1"], abs=tolerance), name

    points = curves_of(root, "pretrain", "train/loss")
    repeated = {step: times for step, times in Counter(step for step, _ in points).items() if times > 1}
    assert not repeated
    job = pretrain_of(run)
    assert job is not None
    losses = {e["step"]: e["loss"] for e in read_events(job.events)[0] if e["event"] == "progress"}
    assert dict(points) == pytest.approx(losses)
    # One run of a job, whatever happened to its driver.
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("vitline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    names = Counter(each.info.run_name for each in runs)
    assert set(names.values()) == {1}, names
    assert {each.info.status for each in runs} == {"FINISHED"}


def write_images(folder: Path, *, readable: bool) -> None:
    """Two classes; without `readable` the files of one are no images."""
    rng = np.random.default_rng(5)
    for split, count in (("train", 40), ("test", 10)):
        for label in ("dark", "light"):
            directory = folder / split / label
            directory.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                path = directory / f"{number:03d}.png"
                low = 0 if label == "dark" else 128
                pixels = rng.integers(low, low + 128, (32, 32, 3)).astype(np.uint8)
                if readable or label == "light":
                    Image.fromarray(pixels).save(path)
                else:
                    path.write_bytes(b"no image")


def test_a_broken_dataset_stops_no_other_and_mended_only_it_runs(
    hosts: Callable[..., Hosts], tmp_path: Path
) -> None:
    folder, run = tmp_path / "shades", tmp_path / "small"
    write_images(folder, readable=False)
    settings = [
        str(SMALL),
        f"root={tmp_path}",
        *FEW,
        "tracking.enabled=false",
        f"datasets.shades={{source: folder, path: {folder}}}",
        "transfer.datasets=[digits,shades]",
    ]
    cluster = hosts(3)
    process = cluster.run(*settings)
    assert process.wait(900) == 5, cluster.output()
    assert "shades" in cluster.output()
    assert "Traceback" not in cluster.output()
    states = states_of(cluster, run)
    failed = {name for name, state in states.items() if state in ("failed", "not run")}
    assert all("shades" in name or name == "compare" for name in failed), failed
    assert {state for name, state in states.items() if name not in failed} == {"done"}
    before = set(results_of(run))
    assert {"pretrain", "evaluate/digits/pretrained/seed0", "evaluate/digits/scratch/seed0"} <= before

    write_images(folder, readable=True)
    process = cluster.run(*settings)
    assert process.wait(900) == 0, cluster.output()
    started = [
        event["name"]
        for event in read_events(run / "events.jsonl")[0]
        if event["event"] == "job" and event["state"] == "running"
    ]
    again = {name for name, times in Counter(started).items() if times > 1}
    assert not again & before
    assert {name for name in results_of(run) if name not in before} == failed

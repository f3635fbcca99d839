"""Parts of one job over the cluster: at once, in order, stopped and gone on with, the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import GlyphsSource, WriteSettings
from pipeline.data.manifest import load_manifest
from pipeline.data.write import prepare
from pipeline.events import read_events
from pipeline.rundir import RunDir, write_json

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
SOURCE = GlyphsSource(
    source="glyphs", classes=30, train_per_class=100, test_per_class=2, write=WriteSettings(shard_samples=15)
)


def test_shards_are_written_at_once_and_are_the_same(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    job = run.job("prepare")
    description = {
        "name": "prepare/x",
        "stage": "prepare",
        "slice": {"dataset": SOURCE.model_dump(mode="json")},
    }
    write_json(job.job, description)
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("spread_cluster.py")), str(run.path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    # A job that holds all CPUs does not keep its own calls from running.
    assert found["met"] == ([0, 1] if found["cpus"] > 1 else found["met"])
    assert (found["before"], found["error"]) == ([0, 1, 2], "three")
    assert found["stopped"] is True
    assert found["kept"] >= 3
    assert found["unchanged"], "a shard that was there was written again"
    assert found["done"] is None

    expected = prepare(SOURCE, tmp_path / "alone")
    assert load_manifest(job.path) == expected
    for split in expected.splits.values():
        for shard in split.shards:
            for name in (shard.name, shard.index):
                assert (job.path / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert sorted(path.name for path in (job.path / "train").iterdir()) == sorted(
        path.name for path in (tmp_path / "alone" / "train").iterdir()
    )
    progress = [event for event in read_events(job.events)[0] if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 60
    assert progress[-1]["images_per_s"] > 0

"""A job that fails touches no other: the rest is done, the report shows it, the exit code says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

SMALL = Path(__file__).parent / "small.yaml"


def test_one_failed_dataset_does_not_stop_the_others(vitline: Callable[..., Any], tmp_path: Path) -> None:
    command = vitline(
        "run",
        str(SMALL),
        f"root={tmp_path}",
        "pretrain.duration=2 steps",
        "pretrain.optimizer.warmup=0 steps",
        "pretrain.gang.workers=1",
        "transfer.seeds=[0]",
        "transfer.protocol.learning_rates=[0.1]",
        "tracking.enabled=false",
        # More than `count` has, and not more than `digits`.
        "transfer.protocol.train_samples=300",
    )
    assert command.wait() == 5, command.text
    assert "finetune/count/pretrained/seed0" in command.text
    assert "300" in command.text.split("The first said:")[1]
    assert "Traceback" not in command.text
    results = json.loads((tmp_path / "small" / "report" / "results.json").read_text())
    assert [(row["dataset"], row["label"]) for row in results["rows"]] == [
        ("digits", "pretrained"),
        ("digits", "scratch"),
    ]
    assert json.loads((tmp_path / "small" / "result.json").read_text())["exit_code"] == 5
    status = vitline("status", str(tmp_path / "small"), "--json")
    assert status.wait() == 0
    states = {job["name"]: job["state"] for job in json.loads(status.text)["jobs"]}
    assert states["evaluate/digits/scratch/seed0"] == "done"
    assert states["evaluate/count/scratch/seed0"] == "failed"

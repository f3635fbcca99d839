"""What fails touches only what needs it: the rest is done, the report shows it, the exit code says so, and
what was mended is all that runs again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.events import read_events

pytestmark = pytest.mark.ray

SMALL = Path(__file__).parent / "small.yaml"


def write_images(folder: Path) -> None:
    rng = np.random.default_rng(5)
    for split, images in (("train", 160), ("test", 10)):
        for low, label in ((0, "dark"), (128, "light")):
            directory = folder / split / label
            directory.mkdir(parents=True)
            for number in range(images):
                pixels = rng.integers(low, low + 128, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(directory / f"{number:03d}.png")


def starts(run: Path) -> Counter[str]:
    events = read_events(run / "events.jsonl")[0]
    return Counter(e["name"] for e in events if e["event"] == "job" and e["state"] == "running")


def states(vitline: Callable[..., Any], run: Path) -> dict[str, str]:
    status = vitline("status", str(run), "--json")
    assert status.wait() == 0, status.text
    return {job["name"]: job["state"] for job in json.loads(status.text)["jobs"]}


def test_a_failed_job_and_a_broken_dataset_stop_no_other(vitline: Callable[..., Any], tmp_path: Path) -> None:
    folder, run = tmp_path / "shades", tmp_path / "small"
    settings = [
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
        f"datasets.shades={{source: folder, path: {folder}}}",
        "transfer.datasets=[digits,count,shades]",
    ]
    command = vitline("run", *settings)
    assert command.wait() == 5, command.text
    assert "Traceback" not in command.text
    assert str(folder) in command.text.split("The first said:")[1]
    assert "finetune/count/pretrained/seed0  failed" in command.text
    assert "prepare/shades" in command.text
    results = json.loads((run / "report" / "results.json").read_text())
    assert [(row["dataset"], row["label"]) for row in results["rows"]] == [
        ("digits", "pretrained"),
        ("digits", "scratch"),
    ]
    assert json.loads((run / "result.json").read_text())["exit_code"] == 5
    first = states(vitline, run)
    assert first["evaluate/digits/scratch/seed0"] == "done"
    assert (first["finetune/count/scratch/seed0"], first["evaluate/count/scratch/seed0"]) == (
        "failed",
        "not run",
    )
    assert first["prepare/shades"] == "failed"
    assert {state for name, state in first.items() if "/shades/" in name} == {"not run"}

    before = starts(run)
    write_images(folder)
    command = vitline("run", *settings)
    assert command.wait() == 5, command.text
    again = set(starts(run) - before)
    assert {name for name in again if "count" not in name} == {
        "prepare/shades",
        "compare",
        *(
            f"{stage}/shades/{start}/seed0"
            for stage in ("finetune", "evaluate")
            for start in ("pretrained", "scratch")
        ),
    }
    assert {state for name, state in states(vitline, run).items() if "shades" in name} == {"done"}

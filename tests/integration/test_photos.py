"""Real photos through the folder source, and what unreadable files and empty splits get."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "tests" / "data" / "photos"
# The shipped configuration with less of everything: what is tested is that it runs, not how well it learns.
SHORT = [
    "datasets.glyphs.classes=6",
    "datasets.glyphs.train_per_class=20",
    "datasets.glyphs.test_per_class=2",
    "pretrain.model.options={width: 32, depth: 2, heads: 2, mlp: 64}",
    "pretrain.duration=6 steps",
    "pretrain.batch=16",
    "pretrain.optimizer.warmup=2 steps",
    "pretrain.gang.workers=1",
    "transfer.protocol.duration=4 steps",
    "transfer.protocol.optimizer.warmup=1 steps",
    "transfer.seeds=[0]",
    "transfer.protocol.learning_rates=[0.03]",
    "tracking.enabled=false",
]


@pytest.mark.ray
def test_the_photo_configuration_runs_and_leaves_an_unreadable_photo_out(
    vitline: Callable[..., Any], tmp_path: Path
) -> None:
    photos = tmp_path / "data"
    shutil.copytree(PHOTOS, photos)
    (photos / "train" / "chair" / "broken.jpg").write_bytes(b"<html>no photo</html>")
    command = vitline(
        "run",
        str(ROOT / "configs" / "photos.yaml"),
        f"root={tmp_path}",
        f"datasets.photos.path={photos}",
        *SHORT,
    )
    assert command.wait() == 0, command.text
    assert "1 unreadable images left out, the first: train/" in command.text
    results = json.loads((tmp_path / "photos" / "report" / "results.json").read_text())
    assert {row["n"] for row in results["rows"]} == {80}


def check_fault(command: Any, code: int, *parts: str) -> None:
    assert command.wait() == code, command.text
    assert "Traceback" not in command.text
    assert "do this:" in command.text
    for part in parts:
        assert part in command.text


@pytest.mark.ray
def test_an_empty_split_fails_what_needs_it_and_is_named(vitline: Callable[..., Any], tmp_path: Path) -> None:
    photos = tmp_path / "data"
    shutil.copytree(PHOTOS / "train", photos / "train")
    for name in (photos / "train").iterdir():
        (photos / "test" / name.name).mkdir(parents=True)
    command = vitline(
        "run",
        str(ROOT / "configs" / "photos.yaml"),
        f"root={tmp_path}",
        f"datasets.photos.path={photos}",
        *SHORT,
    )
    check_fault(command, 5, "test")
    assert "pretrain  done" in command.text


@pytest.mark.ray
def test_a_missing_folder_fails_what_needs_it_and_is_named(
    vitline: Callable[..., Any], tmp_path: Path
) -> None:
    command = vitline(
        "run",
        str(ROOT / "configs" / "photos.yaml"),
        f"root={tmp_path}",
        "datasets.photos.path=nowhere",
        *SHORT,
    )
    check_fault(command, 5, "nowhere")
    assert "pretrain  done" in command.text


@pytest.mark.ray
def test_more_ranks_than_samples_ends_the_run_before_any_step(
    vitline: Callable[..., Any], tmp_path: Path
) -> None:
    command = vitline(
        "run",
        str(ROOT / "configs" / "photos.yaml"),
        f"root={tmp_path}",
        "transfer.datasets=[photos]",
        *[
            item
            for item in SHORT
            if not item.startswith(("datasets.glyphs", "pretrain.gang", "pretrain.batch"))
        ],
        "datasets.glyphs.classes=2",
        "datasets.glyphs.train_per_class=1",
        "datasets.glyphs.test_per_class=1",
        "pretrain.gang={workers: 3, cpus_per_worker: 0.5}",
        "pretrain.batch=3",
    )
    check_fault(command, 2, "3 ranks", "2 samples")

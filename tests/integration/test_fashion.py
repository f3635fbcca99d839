"""60,000 real labelled images from where Debian's package dataset-fashion-mnist puts them: a pre-training
and a transfer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGES = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_real_images_pretrain_and_transfer(vitline: Callable[..., Any], tmp_path: Path) -> None:
    command = vitline(
        "run",
        str(ROOT / "configs" / "fashion.yaml"),
        f"root={tmp_path}",
        "pretrain.duration=200 steps",
        "pretrain.optimizer.warmup=20 steps",
        "transfer.datasets=[digits]",
        "transfer.protocol.learning_rates=[0.03]",
    )
    assert command.wait(1500) == 0, command.text
    rows = json.loads((tmp_path / "fashion" / "report" / "results.json").read_text())["rows"]
    assert [(row["label"], row["n"]) for row in rows] == [("pretrained", 599), ("scratch", 599)]
    # What so short a pre-training buys on digits is no claim (less than nothing, when it was tried);
    # that it learns its own ten classes is.
    status = vitline("status", str(tmp_path / "fashion"), "--json")
    assert status.wait() == 0
    jobs = {job["name"]: job for job in json.loads(status.text)["jobs"]}
    assert jobs["pretrain"]["metrics"]["val/top1"] > 0.5

"""The line that a running training has in the display."""

from __future__ import annotations

from typing import Any

from launch.display import _progress_line

EVENT: dict[str, Any] = {
    **{"event": "progress", "step": 20, "steps": 1000, "loss": 1.5, "lr": 1e-3, "images_per_s": 1234.5},
    **{"position": 2560, "epoch": 0.25, "eta_s": 75.0},
}


def test_it_says_what_was_measured() -> None:
    measured = {"grad_norm": 0.5, "update_ratio": 1.2e-3, "data_wait_s": 0.002, "memory_mib": 1500.0}
    line = _progress_line("pretrain", {**EVENT, **measured, "communication": 0.25, "mfu": 0.5})
    assert line == (
        "pretrain  step 20/1,000  loss 1.5000  1,234 images/s  lr 1.00e-03  position 2,560 (epoch 0.25)"
        "  gradient 0.5  update 1.2e-03  MFU 50.0%  data wait 0.002 s  communication 25%  memory 1,500 MiB"
        "  1:15 left"
    )


def test_what_was_not_measured_is_left_out() -> None:
    line = _progress_line("pretrain", {**EVENT, "grad_norm": None})
    assert line.endswith("position 2,560 (epoch 0.25)  1:15 left")

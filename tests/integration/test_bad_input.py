"""What a user's fault gets: one message, before any training, with the right exit code and no traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = Path(__file__).parent / "small.yaml"


def check_message(command: Any, code: int, *parts: str) -> None:
    assert command.wait() == code, command.text
    assert "Traceback" not in command.text
    for part in ("found:", "expected:", "do this:", *parts):
        assert part in command.text
    assert command.text.count("found:") == 1


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["pretrain.batch=17"], ["batch 17", "multiple of 2", "16 or 18"[:2]]),
        (["pretrain.batch=16", "pretrain.micro_batch=3"], ["multiple of 6"]),
        (["pretrain.model.name=vit_tj8"], ["vit_tj8", "vit_ti8"]),
        (["pretrain.image_size=30"], ["30"]),
        (["pretrain.engine.kind=plain"], ["plain", "zero"]),
        (["pretrain.duratoin=3 steps"], ["pretrain.duratoin", "nearest: duration"]),
        (["transfer.datasets=[digtis]"], ["digtis"]),
    ],
)
def test_settings_are_refused_before_anything_starts(
    vitline: Callable[..., Any], tmp_path: Path, overrides: list[str], parts: list[str]
) -> None:
    check_message(vitline("run", str(SMALL), f"root={tmp_path}", *overrides), 2, *parts)
    assert not (tmp_path / "small").exists()


def test_a_stage_that_does_not_exist_is_named(vitline: Callable[..., Any], tmp_path: Path) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", "--from", "pretrian")
    check_message(
        command, 2, "the stage 'pretrian'", "prepare, pretrain, choose, finetune, evaluate, compare"
    )


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_is_too_small_is_refused_naming_what_is_missing(
    vitline: Callable[..., Any], tmp_path: Path
) -> None:
    settings = ["pretrain.gang.workers=640", "pretrain.batch=640", "tracking.enabled=false"]
    command = vitline("run", str(SMALL), f"root={tmp_path}", *settings)
    check_message(command, 7, "pretrain needs 640 CPU, the cluster has", "lower pretrain.gang.workers")


def test_a_missing_configuration_is_named(vitline: Callable[..., Any], tmp_path: Path) -> None:
    check_message(vitline("run", str(tmp_path / "none.yaml")), 2, "none.yaml")


def test_status_of_no_run_is_refused(vitline: Callable[..., Any], tmp_path: Path) -> None:
    check_message(vitline("status", str(tmp_path)), 2, "runs/demo")


def test_the_order_of_data_that_is_not_prepared_is_refused(
    vitline: Callable[..., Any], tmp_path: Path
) -> None:
    check_message(vitline("data", "order", str(SMALL), f"root={tmp_path}", "--step", "0"), 2, "not prepared")

"""`vitline bench checkpoint`: which steps are compared, and what a rank measures; the command itself at a
tiny size on two ranks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.bench.checkpoint import check_memory, intervals, main, row
from launch.bench.checkpoint_rank import measure
from model.zoo import create_model
from pipeline.config import OptimizerSettings
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.train.fragments import shapes
from pipeline.train.optim import make_groups, make_optimizer, rules
from pipeline.train.plain import PlainEngine
from pipeline.train.world import World


def progress(step: int, images_per_s: float) -> dict[str, Any]:
    return {"event": "progress", "step": step, "images_per_s": images_per_s}


def test_steps_with_a_save_are_told_from_those_without() -> None:
    saved = {"event": "checkpoint", "step": 20}
    events = [progress(10, 1.0), progress(20, 40.0), saved, progress(30, 20.0), progress(40, 80.0)]
    assert intervals(events, 10, 8) == ([4.0], [2.0, 1.0])


def test_a_save_that_reaches_into_the_steps_without_is_refused() -> None:
    with pytest.raises(UserError, match="save of step 20 was not complete at step 30"):
        intervals([progress(10, 1.0), progress(20, 40.0), progress(30, 20.0)], 10, 8)


def test_ratios_are_taken_round_by_round() -> None:
    found = row("save", "vit_b16", 2, 3 * 2**20, [1.0, 6.0, 3.0], [2.0, 2.0, 2.0])
    assert (found["MiB"], found["seconds"], found["ratio"]) == ("3", "3.000", "1.500")
    assert row("first stall", "vit_b16", 2, None, [1.0], [])["ratio"] == ""


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(EnvironmentUnfit, match=r"1\.0 GiB of free memory\nexpected: .* state of vit_h14"):
        check_memory("vit_h14", 2, 2**30)


def test_a_rank_loads_what_it_saved_and_leaves_nothing(tmp_path: Path) -> None:
    module = create_model("vit_ti8", num_classes=3, image_size=16, width=32, depth=2, heads=2, mlp=64)
    settings = OptimizerSettings()
    optimizer = make_optimizer(make_groups(module.named_parameters(), rules(settings)), settings)
    engine = PlainEngine(module, optimizer, None, "float32")
    world = World(0, 1, 0, torch.device("cpu"))
    before = [fragment.data.clone() for fragment in engine.fragments()]
    found = measure(engine, shapes(module), world, tmp_path, 3)
    assert all(torch.equal(old, new.data) for old, new in zip(before, engine.fragments(), strict=True))
    assert found["bytes"] == 12 * sum(p.numel() for p in module.parameters())
    assert {name: len(times) for name, times in found.items() if name != "bytes"} == {
        **dict.fromkeys(("save", "plain_save", "load", "plain_load", "stall"), 3),
        "first_stall": 1,
    }
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, figures = tmp_path / "not" / "there", tmp_path / "nor" / "there" / "figures.csv"
    sizes = ["--every", "2", "--batch", "2", "--image-size", "32", "--train-model", "vit_ti32"]
    work = ["--models", "vit_ti32", "--rounds", "1", "--work", str(place), "--csv", str(figures)]
    main([*work, "--pairs", "1", *sizes])
    rows = list(csv.DictReader(figures.open()))
    assert [r["what"] for r in rows] == ["every 2 steps", "save", "load", "stall", "first stall"]
    assert all(float(r["seconds"]) > 0 for r in rows)
    assert "ratio" in capsys.readouterr().out
    assert not list(place.iterdir())

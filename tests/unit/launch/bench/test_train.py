"""`vitline bench train`: blocks in turn, ratios of neighbours, options; a rank's part in this process, and
the command itself at a tiny size."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.bench import train as train_bench
from launch.bench import train_rank
from launch.bench.ranks import write_drawings, write_photos
from launch.bench.train import main, options, planned_mib, settings_of, speed_row
from launch.bench.train_peers import peer_step, timm_model
from launch.bench.train_rank import Alternation, measure
from model.config import ViTConfig
from model.flops import count_parameters
from model.zoo import model_config
from pipeline.config import TrainJob
from pipeline.errors import UserError
from pipeline.train.world import World

PHOTOS = Path(__file__).resolve().parents[3] / "data" / "photos"
ALONE = World(0, 1, 0, torch.device("cpu"))


def test_blocks_come_in_turn_and_the_first_of_each_does_not_count() -> None:
    seconds: Iterator[float] = iter([10.0, 15.0, 15.0, 17.0, 18.0, 18.0, 21.0, 26.0])
    steps: list[int] = []
    turns = Alternation(lambda: steps.append(1), 3, 2, lambda: None, lambda: (next(seconds), 0.0))
    turns({"event": "start"})
    turns({"event": "progress"})  # 10 → 15: the peer's first; ours begins at 15
    turns({"event": "progress"})  # ours to 17, the peer's to 18
    with pytest.raises(train_rank._Measured):
        turns({"event": "progress"})
    assert turns.ours == [(2.0, 0.0), (3.0, 0.0)]
    assert turns.peers == [(1.0, 0.0), (5.0, 0.0)]
    assert len(steps) == 9


def test_a_row_has_the_median_of_neighbours_ratios_and_mfu_where_the_peak_is_known() -> None:
    found: dict[str, Any] = {"ours_s": [1.0, 2.0, 4.0], "peer_s": [1.0, 1.0, 8.0], "top_images_per_s": None}
    found |= {"ours_processor_s": [2.0, 2.0, 2.0], "peer_processor_s": [1.0, 4.0, 3.0]}
    row = speed_row(found, "vit_b16", "zero-1 against ddp", 2, 100)
    assert (row["ours"], row["beside"], row["ratio"], row["from"], row["to"]) == (
        "50",
        "100",
        "1.000",
        "0.500",
        "2.000",
    )
    assert (row["processor"], row["mfu"], row["peer's mfu"]) == ("1.500", "", "")
    row = speed_row({**found, "top_images_per_s": 100.0}, "vit_b16", "zero-1 against ddp", 2, 100)
    assert (row["mfu"], row["peer's mfu"]) == ("0.250", "0.500")


def test_options_that_do_not_go_together_are_refused() -> None:
    assert options(["--engine", "plain"]).memory_stages == []
    with pytest.raises(UserError, match="2 models without --gpu"):
        options(["--models", "vit_ti16", "vit_s16"])
    with pytest.raises(UserError, match="1 models and 2 batches"):
        options(["--batches", "1", "2"])
    with pytest.raises(UserError, match="--eager without --gpu"):
        options(["--eager"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU that PyTorch can use"):
            options(["--gpu"])


def test_the_plan_of_a_gpu_is_taken_without_its_reserve() -> None:
    given = options(["--image-size", "32"])
    settings = settings_of("vit_ti32", {"stage": 1}, 2, 4, given)
    bucket = 5e8 * 4 / 2**20  # DeepSpeed's, which a processor does not fill
    assert bucket < planned_mib(settings, 10, 1, True) < bucket + 500
    assert 830 < planned_mib(settings, 10, 1, False) < bucket


def test_timm_has_the_same_shape() -> None:
    config = model_config("vit_ti32", num_classes=10)
    assert isinstance(config, ViTConfig)
    assert sum(p.numel() for p in timm_model(config).parameters()) == count_parameters(config)


def test_a_hybrid_has_no_counterpart_in_timm() -> None:
    settings = settings_of("r26_vit_s32", {"kind": "plain"}, 2, 4, options([]))
    with pytest.raises(UserError, match="r26_vit_s32\nexpected: a plain ViT"):
        peer_step("timm", settings, 3, ALONE)


@pytest.mark.parametrize("peer", ["bare", "timm"])
def test_a_rank_trains_beside_a_peer(tmp_path: Path, peer: str) -> None:
    data = write_photos(tmp_path, PHOTOS) if peer == "timm" else write_drawings(tmp_path, 32, per_class=2)
    given = options(["--image-size", "32", "--block", "1", "--blocks", "2"])
    settings = settings_of("vit_ti32", {"kind": "plain"}, 2, 3, given)
    case = {
        "job": TrainJob(data=data, settings=settings, seed=0).model_dump(mode="json"),
        "run": str(tmp_path),
        "out": str(tmp_path / "jobs" / "one" / "measured.json"),
        **{"peer": peer, "block": 1, "blocks": 2, "device": "cpu"},
    }
    (tmp_path / "jobs" / "one").mkdir(parents=True)
    found = measure(case, ALONE)
    assert [len(found[name]) for name in ("ours_s", "peer_s")] == [2, 2]
    assert min(found["ours_s"] + found["peer_s"]) > 0
    assert min(found["ours_processor_s"] + found["peer_processor_s"]) > 0
    assert found["top_images_per_s"] is None, "a processor has no peak in the table"


@pytest.mark.slow
def test_what_a_gpu_measures_runs_on_a_processor_too(tmp_path: Path) -> None:
    sizes = ["--models", "vit_ti32", "--batches", "4", "--image-size", "32", "--block", "1", "--blocks", "1"]
    memory = ["--memory-model", "vit_ti32", "--memory-batch", "4", "--memory-stages", "1", "--ranks", "1"]
    given = options([*sizes, *memory, "--photos", str(PHOTOS)])
    given.gpu = given.eager = True  # all but the device and the compiler
    rows = train_bench.measure(given, tmp_path)
    assert [row["what"] for row in rows] == ["speed, zero-1 against timm", "memory, zero-1"]
    case = json.loads((tmp_path / "jobs" / "vit_ti32-zero-1-timm-1" / "case.json").read_text())
    assert case["job"]["settings"]["engine"]["precision"] == "bf16"


@pytest.mark.slow
def test_the_command_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.csv"
    small = ["--models", "vit_ti32", "--batches", "4", "--image-size", "32", "--block", "1", "--blocks", "1"]
    memory = ["--memory-model", "vit_ti32", "--memory-batch", "4", "--memory-stages", "1", "3"]
    main([*small, *memory, "--work", str(tmp_path), "--csv", str(figures)])
    rows = list(csv.DictReader(figures.open()))
    assert [row["what"] for row in rows] == [
        *("speed, plain against bare", "speed, zero-1 against bare", "speed, zero-1 against ddp"),
        *("memory, zero-1", "memory, zero-3"),
    ]
    assert all(float(row["ratio"]) > 0 for row in rows)
    assert "ratio" in capsys.readouterr().out

"""`vitline config diff`: which settings differ, and what each makes due."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch.cli import app
from launch.config_diff import differences, stages_together
from pipeline.config import RunConfig
from pipeline.config_io import dump_config, load_config

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
TRANSFER = ("choose", "finetune", "evaluate", "compare")


def demo(*overrides: str) -> RunConfig:
    return load_config(DEMO, overrides)


@pytest.mark.parametrize(
    ("override", "key", "stages"),
    [
        ("pretrain.threads=3", "pretrain.threads", ()),
        ("pretrain.duration=9 steps", "pretrain.duration", ("pretrain", *TRANSFER)),
        ("transfer.protocol.batch=16", "transfer.protocol.batch", TRANSFER),
        ("datasets.digits.test_fraction=0.5", "datasets.digits.test_fraction", ("prepare", *TRANSFER)),
    ],
)
def test_a_setting_names_the_stages_that_it_makes_due(
    override: str, key: str, stages: tuple[str, ...]
) -> None:
    (found,) = differences(demo(), demo(override))
    assert (found.key, found.stages) == (key, stages)
    assert stages_together(demo(), demo(override)) == stages


def test_each_setting_is_judged_by_itself() -> None:
    both = demo("pretrain.threads=3", "transfer.protocol.batch=16", "name=other", "root=elsewhere")
    found = {item.key: item.stages for item in differences(demo(), both)}
    assert found == {"pretrain.threads": (), "transfer.protocol.batch": TRANSFER}


def test_what_cannot_change_alone_says_so() -> None:
    found = {
        item.key: item.stages
        for item in differences(demo(), demo("transfer.protocol=transfer/knn.yaml", "transfer.seeds=[0]"))
    }
    assert found["transfer.protocol.kind"] is None
    assert found["transfer.seeds"] == ("compare",)


def test_the_command_reads_a_runs_directory(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(dump_config(demo("transfer.protocol.batch=16")))
    result = CliRunner().invoke(app, ["config", "diff", str(tmp_path), str(DEMO), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [(item["key"], item["first"], item["second"]) for item in told["settings"]] == [
        ("transfer.protocol.batch", 16, 32)
    ]
    assert told["runs_again"] == list(TRANSFER)
    text = CliRunner().invoke(app, ["config", "diff", str(DEMO), str(DEMO)]).stdout
    assert text == "runs again in all: nothing\n"

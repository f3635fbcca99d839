"""The champion was judged on other test images: a run of its own evaluates it on the present ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.config_io import digest_of
from pipeline.retrain.opening import Scene
from pipeline.retrain.tick import RunState
from pipeline.rundir import RunDir, read_json, write_json
from tests.helpers.month import GOOD, Month, Trainer, drop


class OwnPrints(Trainer):
    """Test splits have the fingerprint of the settings that they are made by."""

    def start(self, config: RunConfig, run: RunDir) -> dict[str, Any]:
        record = super().start(config, run)
        for file in run.jobs.glob("*/result.json"):
            result = read_json(file)
            assert result is not None
            if result["stage"] == "evaluate":
                job = read_json(file.parent / "job.json")
                assert job is not None
                settings = config.datasets[job["slice"]["dataset"]].model_dump(mode="json")
                result["outputs"]["test_fingerprint"] = digest_of(settings) * 4
                write_json(file, result)
        return record


def month_with_a_champion(home: Path) -> Month:
    month = Month(home)
    month.trainer = OwnPrints(lambda pattern: GOOD)
    drop(month.watch, 1)
    month.day = 2
    assert month.tick().decision == "promoted"
    return month


def change(month: Month, **datasets: Any) -> None:
    """Other settings from now on: these datasets in place of those of their names."""
    plain = month.config.model_dump(mode="json")
    plain["datasets"] |= datasets
    scene = month.scene
    month.config = RunConfig.model_validate(plain)
    month.scene = Scene(month.config, scene.state, scene.registry, scene.directory, scene.clock)


def test_both_are_judged_on_the_same_images(tmp_path: Path) -> None:
    month = month_with_a_champion(tmp_path)
    change(month, digits={"source": "digits", "test_fraction": 0.5})
    drop(month.watch, 4)
    month.day = 5
    month.trainer.answers = [RunState(running=False, exit_code=0), RunState(running=True)]
    assert month.tick().decision == "started"
    first, second = (item.run for item in month.state.rounds())
    assert month.trainer.started == [first, second, f"{second}-champion"]
    # It is the champion's own pre-training, on its own shards, that is judged.
    again = month.trainer.configs[-1]
    assert again.datasets["glyphs"] == month.trainer.configs[0].datasets["glyphs"]
    assert again.datasets["digits"] == month.config.datasets["digits"]
    answer = month.tick()
    assert answer.decision == "promoted"
    gate = read_json(month.state.gate(second))
    assert gate is not None
    assert gate["champion_run"] == f"{second}-champion"
    assert [item["verdict"] for item in gate["datasets"]] == ["pass", "pass"]
    assert all(item["champion"] is not None for item in gate["datasets"])


def test_with_the_same_images_nothing_is_run_again(tmp_path: Path) -> None:
    month = month_with_a_champion(tmp_path)
    drop(month.watch, 4)
    month.day = 5
    assert month.tick().decision == "promoted"
    assert len(month.trainer.started) == 2


@pytest.mark.parametrize("why", ["its shards are gone", "its run fails"])
def test_where_that_cannot_be_done_the_gate_holds(tmp_path: Path, why: str) -> None:
    month = month_with_a_champion(tmp_path)
    change(month, digits={"source": "digits", "test_fraction": 0.5})
    drop(month.watch, 4)
    if why == "its shards are gone":
        (month.watch / "day-01.tar").unlink()
    month.day = 5
    month.trainer.answers = [RunState(running=False, exit_code=code) for code in (0, 4)]
    answer = month.tick()
    assert answer.decision == "inconclusive"
    assert "test splits differ on digits" in answer.why
    assert month.champion() == "1"
    gate = read_json(month.state.gate(str(answer.run)))
    assert gate is not None
    said = {
        "its shards are gone": "its pre-training is not what it would be today",
        "its run fails": "its run ended with exit code 4",
    }
    assert gate["champion_not_evaluated_anew"].startswith(said[why])

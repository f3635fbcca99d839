"""What the report reads from a run directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.report.gather import Choice, Facts, gather
from pipeline.report.spent_sheets import attempts, stages
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run, write_training


@pytest.fixture
def made(tmp_path: Path) -> SyntheticRun:
    return write_synthetic_run(synthetic_config(tmp_path), images=100)


def facts_of(made: SyntheticRun) -> Facts:
    return gather(made.run, made.config.model_dump(mode="json"), made.digests)


def test_datasets_and_starts_stand_in_the_order_of_the_configuration(made: SyntheticRun) -> None:
    comparison = facts_of(made).comparison
    assert comparison.datasets == ("digits", "count")
    assert comparison.labels == ("pretrained", "scratch")


def test_the_rates_that_were_tried(made: SyntheticRun) -> None:
    facts = facts_of(made)
    assert list(facts.choices) == [
        ("digits", "pretrained"),
        ("digits", "scratch"),
        ("count", "pretrained"),
        ("count", "scratch"),
    ]
    assert facts.choices["digits", "scratch"] == [Choice(0.01, 0.71, 0.8), Choice(0.03, 0.73, 0.8)]


def test_data_cards(made: SyntheticRun) -> None:
    cards = {card.name: card for card in facts_of(made).data}
    assert (cards["digits"].source, cards["digits"].openings, cards["count"].unreadable) == ("digits", 4, 1)
    assert cards["glyphs"].openings == 0
    assert cards["digits"].samples == {"train": 2000, "test": 100}


def test_restarts_are_counted(made: SyntheticRun) -> None:
    digest = made.digests["pretrain"]
    made.run.job(digest).events.unlink()
    write_training(made.run, digest, steps=300, last=150, done=False)
    write_training(made.run, digest, steps=300, first=100, attempt=2)
    facts = facts_of(made)
    rows = {line.cells[0]: line.cells for line in stages(facts).rows}
    assert rows["pretrain"][4] == "1"
    assert rows["finetune"][4] == "0"
    assert [line.cells[2] for line in attempts(facts.jobs_of("pretrain")[0]).rows] == ["0", "100"]

"""Cells are read from a run directory as the stages write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.rundir import read_json, write_json
from pipeline.transfer.cells import collect
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run


@pytest.fixture
def made(tmp_path: Path) -> SyntheticRun:
    return write_synthetic_run(synthetic_config(tmp_path))


def test_a_cell_holds_what_the_jobs_say(made: SyntheticRun) -> None:
    cells = collect(made.run, list(made.digests.values()))
    assert [(c.dataset, c.start, c.seed) for c in cells] == [
        (dataset, start, seed)
        for dataset in ("digits", "count")
        for start in ("pretrained", "scratch")
        for seed in (0, 1)
    ]
    first = cells[4]
    assert first.digest == made.digests["evaluate/count/pretrained/seed0"]
    assert (first.n, first.protocol, first.learning_rate) == (400, "quick", 0.03)
    assert first.top1 == pytest.approx(0.86)
    assert list(first.ids) == list(range(400))
    # The file's rows are in another order: labels must have moved with their ids.
    assert np.array_equal(first.labels == first.predictions, first.correct)
    assert first.classes[0] == "class 0"


def test_costs_hold_every_training_once_and_pretraining_only_where_it_was_used(made: SyntheticRun) -> None:
    pretrained, _, scratch, _ = collect(made.run, list(made.digests.values()))[:4]
    assert {stage: cost.images for stage, cost in pretrained.cost.items()} == {
        "pretrain": 300 * 128,
        "choose": 2 * 200 * 64,
        "finetune": 200 * 64,
    }
    assert set(scratch.cost) == {"choose", "finetune"}
    assert pretrained.total_cost.images == 300 * 128 + 3 * 200 * 64


def test_jobs_that_are_not_done_are_passed_over(made: SyntheticRun) -> None:
    made.run.job(made.digests["evaluate/count/scratch/seed1"]).result.unlink()
    assert len(collect(made.run, list(made.digests.values()))) == 7


def test_predictions_that_disagree_with_the_result_are_refused(made: SyntheticRun) -> None:
    digest = made.digests["evaluate/count/scratch/seed1"]
    result = read_json(made.run.job(digest).result)
    assert result is not None
    result["metrics"]["eval/n"] = 401.0
    write_json(made.run.job(digest).result, result)
    with pytest.raises(DataError, match=r"400 predictions of evaluate/count/scratch/seed1.*\n.*401"):
        collect(made.run, [digest])


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_missing_or_torn_predictions_are_named(made: SyntheticRun, content: bytes | None) -> None:
    digest = made.digests["evaluate/digits/scratch/seed0"]
    path = made.run.job(digest).predictions
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match="predictions of evaluate/digits/scratch/seed0 cannot be read"):
        collect(made.run, [digest])


def test_protocols_of_one_name_are_told_apart(tmp_path: Path, made: SyntheticRun) -> None:
    changed = made.config.model_dump(mode="json")
    changed["name"] = "other"
    changed["transfer"]["protocol"]["duration"] = "100 steps"
    other = write_synthetic_run(type(made.config).model_validate(changed))
    mine, theirs = (collect(m.run, m.of_stage("evaluate"))[0] for m in (made, other))
    assert mine.protocol == theirs.protocol
    assert mine.protocol_digest != theirs.protocol_digest

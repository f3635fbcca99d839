"""The worker in this process, on one rank with the plain engine: the fast half of its tests. Several
ranks, signals and kills are in tests/integration/test_worker.py."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from model.losses import loss_sum
from model.weights.files import load_weights
from pipeline.config import HealthSettings, OptimizerSettings
from pipeline.errors import (
    Busy,
    ConfigError,
    StopRequested,
    TrainingError,
)
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.goodput import CAUSES
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import read_job, run
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]
ONE_STEP: dict[str, Any] = {"duration": "1 steps", "optimizer": OptimizerSettings()}


def losses(job: JobDir, attempt: int | None = None) -> dict[int, float]:
    """Step → loss, of one attempt or of the whole job (the newest counts)."""
    events, _ = read_events(job.events)
    return {
        e["step"]: e["loss"] for e in events if e["event"] == "progress" and attempt in (None, e["attempt"])
    }


def test_a_training_leaves_what_the_run_directory_promises(run_dir: Path, add_job: Add) -> None:
    job = add_job(validate=True)
    result = run(run_dir, "aaaa", device="cpu")
    assert json.loads(job.result.read_text()) == result
    assert set(result["metrics"]) == {
        *("train/loss", "train/grad_norm", "train/lr", "train/images_per_s", "val/top1", "val/loss"),
        *("cost/images_seen", "cost/exaflops", "cost/seconds", "cost/device_hours", "cost/goodput"),
        *(f"cost/lost_{cause}_s" for cause in CAUSES),
    }
    assert result["metrics"]["cost/images_seen"] == 144
    assert result["outputs"]["weights"] == "jobs/aaaa/weights.safetensors"
    assert result["outputs"]["steps"] == 12
    state, config, header = load_weights(job.weights)
    assert config["width"] == 32
    assert json.loads(header["classes"]) == [str(c) for c in json.loads(header["classes"])]
    assert all(torch.isfinite(value).all() for value in state.values())
    kinds = [e["event"] for e in read_events(job.events)[0]]
    assert kinds[0] == "start"
    assert kinds[-2:] == ["validate", "done"]
    assert kinds.count("checkpoint") == 3
    assert len(losses(job)) == 12
    assert not run_dir.joinpath("openings.jsonl").exists(), "training opened a test split for a result"


def test_a_finished_job_returns_at_once(run_dir: Path, add_job: Add) -> None:
    job = add_job()
    first = run(run_dir, "aaaa", device="cpu")
    assert run(run_dir, "aaaa", device="cpu") == first
    assert job.read_generation() == 1


def test_stopped_and_continued_equals_never_stopped(run_dir: Path, add_job: Add) -> None:
    whole, cut = add_job("whole"), add_job("cut")
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested, match="step 6 of 12"):
        run(run_dir, "cut", stop_asked=stop_after(6), device="cpu")
    assert not cut.result.exists()
    assert (cut.checkpoints / "step-000000006" / "COMPLETE").exists()
    run(run_dir, "cut", device="cpu")
    assert losses(cut) == losses(whole)
    assert min(losses(cut, attempt=2)) == 7
    assert read_sample_log(cut) == read_sample_log(whole)
    assert load_weights(cut.weights)[0].keys() == load_weights(whole.weights)[0].keys()
    for name, value in load_weights(whole.weights)[0].items():
        assert torch.equal(load_weights(cut.weights)[0][name], value), name


def test_the_file_named_stop_stops_too(run_dir: Path, add_job: Add) -> None:
    job = add_job()
    job.stop.touch()
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", device="cpu")
    assert [e["event"] for e in read_events(job.events)[0]][-1] == "stopped"


def test_an_attempt_that_was_replaced_completes_nothing(run_dir: Path, add_job: Add) -> None:
    job = add_job(checkpoint={"every": "4 steps", "keep": 9})
    calls = iter(range(100))

    def replaced_after_step_5() -> bool:
        if next(calls) == 5:
            job.next_generation()
        return False

    with pytest.raises(Busy, match="attempt 2 of job aaaa has begun"):
        run(run_dir, "aaaa", stop_asked=replaced_after_step_5, device="cpu")
    assert {path.parent.name for path in job.checkpoints.glob("*/COMPLETE")} <= {"step-000000004"}
    assert not job.result.exists()
    run(run_dir, "aaaa", device="cpu")
    assert job.read_generation() == 3


def test_retention_keeps_the_newest(run_dir: Path, add_job: Add) -> None:
    job = add_job(checkpoint={"every": "2 steps", "keep": 3})
    run(run_dir, "aaaa", device="cpu")
    assert sorted(path.name for path in job.checkpoints.iterdir()) == [
        "step-000000008",
        "step-000000010",
        "step-000000012",
    ]


def test_checkpoints_only_at_the_end_when_no_interval_is_set(run_dir: Path, add_job: Add) -> None:
    job = add_job(checkpoint={})
    run(run_dir, "aaaa", device="cpu")
    assert [e["step"] for e in read_events(job.events)[0] if e["event"] == "checkpoint"] == [12]


def test_a_loss_that_is_not_finite_ends_the_training_by_name(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job(micro_batch=4)
    calls = iter(range(100))

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        # Steps have three micro-batches; the second of step 2 breaks.
        return loss_sum(*args, **options) * (math.nan if next(calls) == 4 else 1.0)

    monkeypatch.setattr("pipeline.train.objective.loss_sum", broken)
    with pytest.raises(TrainingError) as caught:
        run(run_dir, "aaaa", device="cpu")
    order = add_job("order")
    monkeypatch.undo()
    run(run_dir, "order", device="cpu")
    named = ", ".join(map(str, read_sample_log(order)[2][4:8]))
    assert caught.value.found == f"the loss of step 2 is not finite on ranks [0], with samples {named}"
    ids = read_sample_log(job)
    assert list(ids) == [1], "the step that failed was logged as done"
    failed = [e for e in read_events(job.events)[0] if e["event"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["rank"] == 0
    assert "Traceback" in job.rank_log(1, 0).read_text()


def test_a_loss_that_jumps_is_told(run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job(duration="30 steps", health=HealthSettings(spike=8))
    calls = iter(range(100))

    def jumping(*args: Any, **options: Any) -> torch.Tensor:
        return loss_sum(*args, **options) * (100.0 if next(calls) == 25 else 1.0)

    monkeypatch.setattr("pipeline.train.objective.loss_sum", jumping)
    run(run_dir, "aaaa", device="cpu")
    said = [e["message"] for e in read_events(job.events)[0] if e["event"] == "warning"]
    [jump] = [text for text in said if text.startswith("step 26: ")]
    assert "deviations above its recent mean" in jump


def test_gradients_that_are_not_finite_are_left_out_and_then_end_the_training(
    run_dir: Path, add_job: Add
) -> None:
    job = add_job(optimizer=OptimizerSettings(name="sgd", learning_rate=1e30, clip_norm=None))
    with pytest.raises(
        TrainingError, match="gradients were not finite in 3 steps in a row, the last is step 4"
    ):
        run(run_dir, "aaaa", device="cpu")
    progress = [e for e in read_events(job.events)[0] if e["event"] == "progress"]
    assert [(e["step"], e["skipped"], e["grad_norm"] is None) for e in progress] == [
        *((1, 0, False), (2, 1, True), (3, 2, True)),
    ]


def test_fine_tuning_starts_from_weights_with_a_zero_head(run_dir: Path, add_job: Add) -> None:
    add_job("first")
    run(run_dir, "first", device="cpu")
    tuned = add_job("tuned", start="jobs/first/weights.safetensors", image_size=24, **ONE_STEP)
    run(run_dir, "tuned", device="cpu")
    # A zero head gives log(6) at the first step, whatever the features.
    assert losses(tuned)[1] == pytest.approx(1.7917595, abs=1e-6)
    states = [load_weights(run_dir / f"jobs/{name}/weights.safetensors")[0] for name in ("first", "tuned")]
    table, grown = (state["positions.table"] for state in states)
    assert table.shape[1] == 5
    assert grown.shape[1] == 10


def test_weights_that_do_not_fit_are_refused(run_dir: Path, add_job: Add) -> None:
    add_job("first", **ONE_STEP)
    run(run_dir, "first", device="cpu")
    add_job("tuned", start="jobs/first/weights.safetensors", model={"name": "vit_ti8"})
    with pytest.raises(ConfigError, match="width is 32 in the weights and 192"):
        run(run_dir, "tuned", device="cpu")
    add_job("none", start="jobs/nowhere/weights.safetensors")
    with pytest.raises(ConfigError, match="no weight file"):
        run(run_dir, "none", device="cpu")


def test_evaluation_counts_each_image_once_and_records_the_opening(
    run_dir: Path, add_job: Add, add_evaluation: Add
) -> None:
    add_job("first", validate=True)
    trained = run(run_dir, "first", device="cpu")
    job = add_evaluation("eval", "jobs/first/weights.safetensors")
    result = run(run_dir, "eval", device="cpu")
    table = pq.read_table(job.predictions)
    assert table.column_names == ["id", "key", "label", "prediction", "correct", "nll", "confidence"]
    assert [str(field.type) for field in table.schema] == [
        "int64",
        "string",
        "int32",
        "int32",
        "bool",
        "float",
        "float",
    ]
    assert table["id"].to_pylist() == list(range(18))
    right = sum(table["correct"].to_pylist())
    assert result["metrics"]["eval/top1"] == right / 18
    assert result["metrics"]["eval/n"] == 18
    assert 0 <= result["metrics"]["eval/ece"] <= 1
    assert all(1 / 6 <= value <= 1 for value in table["confidence"].to_pylist())
    # The same split scored at the end of training gives the same.
    assert result["metrics"]["eval/top1"] == trained["metrics"]["val/top1"]
    assert result["metrics"]["eval/nll"] == pytest.approx(trained["metrics"]["val/loss"], rel=1e-5)
    openings = [json.loads(line) for line in (run_dir / "openings.jsonl").read_text().splitlines()]
    assert [(o["job"], o["name"]) for o in openings] == [("eval", "evaluate/eval")]
    assert openings[0]["dataset"] == result["outputs"]["test_fingerprint"]


def test_a_job_that_is_not_there_or_not_for_the_worker(run_dir: Path, add_job: Add) -> None:
    with pytest.raises(ConfigError, match="do this: check the path"):
        run(run_dir, "nope", device="cpu")
    job = add_job()
    description = json.loads(job.job.read_text())
    job.job.write_text(json.dumps(description | {"work": {}}))
    with pytest.raises(ConfigError, match="work of kind None"):
        read_job(job)
    description["work"]["settings"]["bacth"] = 3
    job.job.write_text(json.dumps(description))
    with pytest.raises(ConfigError, match="bacth"):
        read_job(job)


def test_a_loss_that_is_not_finite_can_be_left_out(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job(health=HealthSettings(loss_not_finite="skip"))
    calls = iter(range(100))

    def broken(*args: Any, **options: Any) -> torch.Tensor:
        return loss_sum(*args, **options) * (math.nan if next(calls) == 4 else 1.0)

    monkeypatch.setattr("pipeline.train.objective.loss_sum", broken)
    run(run_dir, "aaaa", device="cpu")
    progress = [e for e in read_events(job.events)[0] if e["event"] == "progress"]
    assert [e["loss"] is None for e in progress] == [e["step"] == 5 for e in progress]
    assert progress[-1]["skipped"] == 1
    assert list(read_sample_log(job)) == list(range(1, 13))


def test_the_average_is_exported_and_scored(run_dir: Path, add_job: Add, add_evaluation: Add) -> None:
    job = add_job(validate=True, average=0.9)
    trained = run(run_dir, "aaaa", device="cpu")
    average, last = (load_weights(job.path / f"{name}.safetensors") for name in ("weights", "weights-last"))
    assert (average[2]["weights"], last[2]["weights"]) == ("average", "master")
    assert not torch.equal(average[0]["head.weight"], last[0]["head.weight"])
    add_evaluation("eval", "jobs/aaaa/weights.safetensors")
    scored = run(run_dir, "eval", device="cpu")
    assert scored["metrics"]["eval/nll"] == pytest.approx(trained["metrics"]["val/loss"], rel=1e-5)

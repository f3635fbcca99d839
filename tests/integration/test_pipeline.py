"""The whole pipeline by the real command: Ray, DeepSpeed, WebDataset, MLflow, nothing replaced."""

from __future__ import annotations

import json
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.rundir import RunDir, read_json

pytestmark = pytest.mark.ray

SMALL = Path(__file__).parent / "small.yaml"


def jobs_of(path: Path) -> dict[str, dict[str, Any]]:
    """name → job.json with its result under "result"."""
    found = {}
    for file in (path / "jobs").glob("*/job.json"):
        job = read_json(file)
        assert job is not None
        found[job["name"]] = {**job, "result": read_json(file.parent / "result.json")}
    return found


def plan_of(vitline: Callable[..., Any], run: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    command = vitline("run", str(SMALL), f"root={run.parent}", *overrides, "--dry-run", "--json")
    assert command.wait() == 0, command.text
    return {job["name"]: job for job in json.loads(command.text)}


def test_every_job_is_done(finished_run: Path) -> None:
    jobs = jobs_of(finished_run)
    stages = Counter(job["stage"] for job in jobs.values())
    # 2 datasets × 2 starts × 2 rates, and × 2 seeds.
    assert stages == {"prepare": 3, "pretrain": 1, "choose": 8, "finetune": 8, "evaluate": 8, "compare": 1}
    assert all(job["result"] is not None for job in jobs.values())
    assert read_json(finished_run / "result.json")["exit_code"] == 0  # type: ignore[index]


def test_each_test_image_is_counted_once(finished_run: Path) -> None:
    for job in jobs_of(finished_run).values():
        if job["stage"] == "evaluate":
            assert job["result"]["metrics"]["eval/n"] == {"digits": 599, "count": 60}[job["slice"]["dataset"]]


def test_choices_are_made_on_train_and_tests_opened_once_a_cell(finished_run: Path) -> None:
    for job in jobs_of(finished_run).values():
        if job["stage"] in ("choose", "finetune"):
            views = [job["work"]["data"], job["work"]["validate_on"]]
            assert {view["split"] for view in views if view} == {"train"}
    openings = [
        json.loads(line)["name"] for line in (finished_run / "openings.jsonl").read_text().splitlines()
    ]
    assert sorted(openings) == sorted(name for name in jobs_of(finished_run) if name.startswith("evaluate/"))


def test_finetuning_takes_the_rate_that_was_best_on_the_held_out_part(finished_run: Path) -> None:
    jobs = jobs_of(finished_run)
    for name, job in jobs.items():
        if job["stage"] != "finetune":
            continue
        prefix = "choose/" + "/".join(name.split("/")[1:3])
        scores = {
            choice["slice"]["learning_rate"]: (
                choice["result"]["metrics"]["val/top1"],
                -choice["result"]["metrics"]["val/loss"],
            )
            for choice_name, choice in jobs.items()
            if choice_name.startswith(prefix + "/")
        }
        assert job["work"]["settings"]["optimizer"]["learning_rate"] == max(
            scores, key=lambda rate: scores[rate]
        )


def test_a_second_run_has_nothing_to_do(vitline: Callable[..., Any], finished_run: Path) -> None:
    command = vitline("run", str(SMALL), f"root={finished_run.parent}")
    assert command.wait() == 0, command.text
    assert "0 due" in command.text
    assert {job["state"] for job in plan_of(vitline, finished_run).values()} == {"done"}


def test_a_changed_rate_reruns_the_transfer_and_not_the_pretraining(
    vitline: Callable[..., Any], finished_run: Path
) -> None:
    jobs = plan_of(vitline, finished_run, "transfer.protocol.learning_rates=[0.03,0.2]")
    due = {name for name, job in jobs.items() if job["state"] == "due"}
    assert "choose/digits/pretrained/lr0.2" in due
    assert "finetune/count/scratch/seed1" in due
    assert "compare" in due
    assert not due & {"pretrain", "prepare/digits", "choose/digits/pretrained/lr0.03"}
    assert jobs["finetune/digits/pretrained/seed0"]["reason"].startswith("changed: learning_rates")


def test_ranks_and_checkpoints_do_not_change_what_a_result_is(
    vitline: Callable[..., Any], finished_run: Path
) -> None:
    jobs = plan_of(vitline, finished_run, "pretrain.gang.workers=4", "pretrain.checkpoint.every=9 steps")
    assert {job["state"] for job in jobs.values()} == {"done"}


def test_mlflow_holds_one_parent_with_its_children(finished_run: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{finished_run.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("vitline")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.status for run in parents] == ["FINISHED"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 29
    assert {run.info.status for run in children} == {"FINISHED"}
    pretrain = next(run for run in children if run.info.run_name == "pretrain")
    curve = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert sorted({point.step for point in curve}) == list(range(1, 25))


def test_the_report_is_one_file_that_needs_no_network(finished_run: Path) -> None:
    page = (finished_run / "report" / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    for name in ("digits", "count", "pretrained", "scratch"):
        assert name in page


def test_rays_token_is_readable_by_nobody_else(finished_run: Path, home: Path) -> None:
    assert stat.S_IMODE((finished_run / "launch" / "ray_token").stat().st_mode) == 0o600
    assert not (home / ".ray" / "auth_token").exists()


def test_no_hidden_build_was_started(finished_run: Path, home: Path) -> None:
    assert not (home / ".cache" / "torch_extensions").exists()


def test_status_shows_every_job(vitline: Callable[..., Any], finished_run: Path) -> None:
    command = vitline("status", str(finished_run), "--json")
    assert command.wait() == 0, command.text
    status = json.loads(command.text)
    assert {job["state"] for job in status["jobs"]} == {"done"}
    assert {job["name"] for job in status["jobs"]} == set(jobs_of(finished_run))


def test_the_printed_order_is_the_order_that_was_trained(
    vitline: Callable[..., Any], finished_run: Path
) -> None:
    from pipeline.train.samplelog import read_sample_log

    digest = jobs_of(finished_run)["pretrain"]["digest"]
    log = read_sample_log(RunDir(finished_run).job(digest))
    assert sorted(log) == list(range(1, 25))
    command = vitline(
        "data", "order", str(SMALL), f"root={finished_run.parent}", "--step", "7", "--ranks", "2"
    )
    assert command.wait() == 0, command.text
    rows = [json.loads(line) for line in command.text.splitlines()]
    # Batch 7, counted from 0, is what step 8 consumed.
    assert [row["id"] for row in rows] == log[8]
    assert [row["rank"] for row in rows] == [0] * 8 + [1] * 8

"""Probes by the worker, in this process: each kind from pre-trained and from drawn weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.config import (
    AugmentSettings,
    DataView,
    FewShotProtocol,
    KnnProtocol,
    LinearProtocol,
    ModelSettings,
    ProbeJob,
)
from pipeline.config.transfer import ProbeProtocol
from pipeline.errors import UserError
from pipeline.rundir import JobDir, RunDir, write_json
from pipeline.train.worker import run

Add = Callable[..., JobDir]
MODEL = ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64})
HOW: dict[str, Any] = {"name": "probe", "image_size": 16, "augment": AugmentSettings()}
KINDS: list[ProbeProtocol] = [
    FewShotProtocol(kind="few_shot", shots=4, **HOW),
    KnnProtocol(kind="knn", neighbours=5, **HOW),
    LinearProtocol(kind="linear", l2=(1e-4, 1e-1), held_out=0.3, **HOW),
]


def add_probe(
    run_dir: Path, protocol: ProbeProtocol, digest: str = "probe", weights: str | None = None, seed: int = 0
) -> JobDir:
    view = DataView(path="data/glyphs", split="train", seed=seed)
    job = ProbeJob(
        train=view,
        data=view.model_copy(update={"split": "test"}),
        weights=weights,
        model=MODEL,
        protocol=protocol,
        seed=seed,
        batch=7,
    )
    directory = RunDir(run_dir).job(digest)
    described = {"schema": 1, "digest": digest, "name": f"evaluate/{digest}", "stage": "evaluate"}
    write_json(
        directory.job,
        {
            **described,
            "stage_version": 1,
            "slice": {},
            "inputs": {},
            "work": job.model_dump(mode="json"),
        },
    )
    return directory


@pytest.mark.parametrize("protocol", KINDS, ids=lambda protocol: protocol.kind)
def test_a_probe_scores_every_test_image_once(run_dir: Path, add_job: Add, protocol: ProbeProtocol) -> None:
    add_job("first")
    run(run_dir, "first", device="cpu")
    job = add_probe(run_dir, protocol, weights="jobs/first/weights.safetensors")
    result = run(run_dir, "probe", device="cpu")
    table = pq.read_table(job.predictions)
    assert table["id"].to_pylist() == list(range(18))
    assert result["metrics"]["eval/n"] == 18
    assert result["metrics"]["eval/top1"] == np.mean(table["correct"].to_numpy())
    # Six classes of which a guess gets one in six: features of a network say more, trained or not.
    assert result["metrics"]["eval/top1"] > 1 / 3
    assert ("eval/ece" in result["metrics"]) == (protocol.kind != "few_shot")
    assert ("eval/nll" in result["metrics"]) == (protocol.kind == "linear")
    openings = [json.loads(line) for line in (run_dir / "openings.jsonl").read_text().splitlines()]
    assert [opening["name"] for opening in openings] == ["evaluate/probe"]


def test_weights_matter_and_the_seed_draws_those_of_scratch(run_dir: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        job = add_probe(run_dir, KINDS[1], digest=f"probe{len(found)}", seed=seed)
        run(run_dir, f"probe{len(found)}", device="cpu")
        found.append(pq.read_table(job.predictions)["confidence"].to_pylist())
    assert found[0] == found[1] != found[2]


def test_a_few_shots_are_so_many_of_each_class_and_each_seed_has_its_own(run_dir: Path) -> None:
    prints = []
    for seed in (0, 1):
        add_probe(run_dir, KINDS[0], digest=f"few{seed}", seed=seed)
        outputs = run(run_dir, f"few{seed}", device="cpu")["outputs"]
        assert outputs["train_samples"] == 4 * 6
        prints.append(outputs["train_fingerprint"])
    assert prints[0] != prints[1]


def test_more_shots_than_images_are_refused_before_the_test_is_opened(run_dir: Path) -> None:
    add_probe(run_dir, FewShotProtocol(kind="few_shot", shots=11, **HOW))
    with pytest.raises(UserError, match="10 training images of class"):
        run(run_dir, "probe", device="cpu")
    assert not (run_dir / "openings.jsonl").exists()


def test_positions_are_resized_to_the_protocols_resolution(run_dir: Path, add_job: Add) -> None:
    add_job("first")
    run(run_dir, "first", device="cpu")
    larger = KnnProtocol(kind="knn", **{**HOW, "image_size": 32})
    add_probe(run_dir, larger, weights="jobs/first/weights.safetensors")
    assert run(run_dir, "probe", device="cpu")["metrics"]["eval/n"] == 18


def test_the_penalty_is_chosen_without_the_test_split(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same choice, whatever the test split holds: here it is the training split."""
    add_job("first")
    run(run_dir, "first", device="cpu")
    add_probe(run_dir, KINDS[2], weights="jobs/first/weights.safetensors")
    tried = run(run_dir, "probe", device="cpu")["outputs"]["tried"]
    description = json.loads(RunDir(run_dir).job("probe").job.read_text())
    description["work"]["data"]["split"] = "train"
    write_json(RunDir(run_dir).job("other").job, {**description, "digest": "other"})
    other = run(run_dir, "other", device="cpu")
    assert other["metrics"]["eval/n"] == 60
    assert other["outputs"]["tried"] == tried
    assert {round(row["top1"] * 18, 6) % 1 for row in tried} == {0}, "a share of the 18 rows held out"

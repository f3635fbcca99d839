"""A run directory as a finished `vitline run` leaves it, without any training: invented numbers,
real files. Job descriptions come from the real stages, so they cannot drift from the contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.config_io import digest_of, dump_config
from pipeline.events import EventLog
from pipeline.graph import Planned, plan
from pipeline.rundir import RunDir, write_atomic, write_json
from pipeline.stages.catalog import all_jobs, write_job

START = 1_700_000_000.0

# (dataset, start, seed) → share of right answers.
Accuracy = Callable[[str, str, int], float]


def pretrained_wins(dataset: str, start: str, seed: int) -> float:
    return (0.86 if start == "pretrained" else 0.72) + 0.004 * seed


@dataclass
class SyntheticRun:
    run: RunDir
    config: RunConfig
    planned: list[Planned]

    @property
    def digests(self) -> dict[str, str]:
        return {item.job.name: item.digest for item in self.planned}

    def of_stage(self, stage: str) -> list[str]:
        return [item.digest for item in self.planned if item.job.stage == stage]


def synthetic_config(root: Path, **changes: Any) -> RunConfig:
    """Two transfer datasets, two starts, two seeds; `changes` replace top-level settings."""
    plain: dict[str, Any] = {
        "name": "synthetic",
        "root": str(root),
        "datasets": {
            "glyphs": {"source": "glyphs", "classes": 20},
            "digits": {"source": "digits"},
            "count": {"source": "sprites", "label": "count"},
        },
        "pretrain": {
            "model": {"name": "vit_ti16", "options": {"depth": 2}},
            "dataset": "glyphs",
            "duration": "300 steps",
            "batch": 128,
        },
        "transfer": {
            "protocol": {
                "name": "quick",
                "image_size": 32,
                "duration": "200 steps",
                "batch": 64,
                "learning_rates": [0.01, 0.03],
            },
            "datasets": ["digits", "count"],
            "seeds": [0, 1],
        },
    }
    return RunConfig.model_validate({**plain, **changes})


def write_synthetic_run(
    config: RunConfig,
    *,
    accuracy: Accuracy = pretrained_wins,
    images: int = 400,
    classes: Mapping[str, list[str]] | None = None,
    stages: tuple[str, ...] = ("prepare", "pretrain", "choose", "finetune", "evaluate", "compare"),
) -> SyntheticRun:
    """Write the run of `config`, as far as `stages` go, below its root."""
    # Nobody pulls the plug while a test builds its files.
    with patch("os.fsync"):
        return _write_run(config, accuracy, images, classes or {}, stages)


def _write_run(
    config: RunConfig,
    accuracy: Accuracy,
    images: int,
    classes: Mapping[str, list[str]],
    stages: tuple[str, ...],
) -> SyntheticRun:
    run = RunDir(Path(config.root) / config.name)
    write_atomic(run.config, dump_config(config).encode())
    planned = plan(all_jobs(config), lambda _: False, {})
    made = SyntheticRun(run, config, planned)
    log = EventLog(run.events)
    time = START
    log(
        {
            "event": "run",
            "time": time,
            "state": "started",
            "name": config.name,
            "version": "0.1.0",
            "commit": "c0ffee",
        }
    )
    for item in planned:
        if item.job.stage not in stages:
            continue
        write_job(config, run, item)
        _job_event(log, item, time, "running")
        seconds = _write_outcome(made, item, time, accuracy, images, classes)
        time += seconds
        _job_event(log, item, time, "done")
    log({"event": "run", "time": time + 1, "state": "finished"})
    log.close()
    return made


def _job_event(log: EventLog, item: Planned, time: float, state: str) -> None:
    event = {
        "event": "job",
        "time": time,
        "digest": item.digest,
        "name": item.job.name,
        "stage": item.job.stage,
    }
    log({**event, "state": state, "reason": item.reason})


def _write_outcome(
    made: SyntheticRun,
    item: Planned,
    time: float,
    accuracy: Accuracy,
    images: int,
    classes: Mapping[str, list[str]],
) -> float:
    """Events and result of one job; returns the seconds it took."""
    job, stage = item.job, item.job.stage
    metrics: dict[str, float] = {}
    outputs: dict[str, Any] = {}
    seconds = {"prepare": 2.0, "pretrain": 120.0, "evaluate": 1.0, "compare": 3.0}.get(stage, 20.0)
    if stage == "prepare":
        metrics = {"data/train_samples": 2000.0, "data/test_samples": float(images)}
        prints = {split: digest_of([job.name, split]) * 4 for split in ("train", "test")}
        outputs = {
            "classes": 10,
            "fingerprints": prints,
            "unreadable": 1 if job.name.endswith("count") else 0,
        }
    elif stage == "evaluate":
        metrics, outputs = _write_predictions(made.run, item, accuracy, images, classes)
    elif stage != "compare":
        steps = 300 if stage == "pretrain" else 200
        batch = 128 if stage == "pretrain" else 64
        write_training(made.run, item.digest, steps=steps, batch=batch, time=time, seconds=seconds)
        better = job.slice.get("start") == "pretrained"
        metrics = {
            "train/loss": _loss(steps, steps),
            "cost/images_seen": float(steps * batch),
            "cost/exaflops": steps * batch * 3e7 / 1e18,
            "cost/seconds": seconds,
            "cost/device_hours": seconds / 3600 * (2 if stage == "pretrain" else 1),
        }
        if stage == "choose":
            rate = job.slice["learning_rate"]
            metrics |= {"val/top1": 0.7 + 0.1 * better + rate, "val/loss": 0.8}
        weights = f"jobs/{item.digest}/weights.safetensors"
        outputs = {"weights": weights, "steps": steps, "train_fingerprint": digest_of([stage, job.name]) * 4}
    write_json(
        made.run.job(item.digest).result,
        {
            "schema": 1,
            "digest": item.digest,
            "name": job.name,
            "stage": stage,
            "finished": time + seconds,
            "seconds": seconds,
            "metrics": metrics,
            "outputs": outputs,
        },
    )
    return seconds


def _loss(step: int, steps: int) -> float:
    return 0.4 + 2.6 * math.exp(-4 * step / steps)


def write_training(
    run: RunDir,
    digest: str,
    *,
    steps: int,
    batch: int = 64,
    time: float = START,
    seconds: float = 20.0,
    first: int = 0,
    last: int | None = None,
    every: int = 10,
    attempt: int = 1,
    done: bool = True,
) -> None:
    """Append the events of one attempt, from step `first` to step `last`."""
    log = EventLog(run.job(digest).events, attempt=attempt)
    write_atomic(run.job(digest).generation, f"{attempt}\n".encode())
    last = steps if last is None else last
    log({"event": "start", "time": time, "step": first, "steps": steps, "world": 1, "batch": batch})
    for step in range(first + every, last + 1, every):
        log(
            {
                "event": "progress",
                "time": time + seconds * step / steps,
                "step": step,
                "loss": _loss(step, steps),
                "grad_norm": 1.5,
                "lr": 0.01,
                "images_per_s": 400.0,
                "data_wait_s": 0.01,
                "position": step * batch,
                "epoch": step * batch / 2000,
                "eta_s": seconds * (1 - step / steps),
                "skipped": 0,
            }
        )
    if done:
        log({"event": "validate", "time": time + seconds, "step": steps, "top1": 0.81, "loss": 0.7, "n": 400})
        log({"event": "done", "time": time + seconds, "step": steps})
    log.close()


def _write_predictions(
    run: RunDir, item: Planned, accuracy: Accuracy, images: int, classes: Mapping[str, list[str]]
) -> tuple[dict[str, float], dict[str, Any]]:
    part = item.job.slice
    names = classes.get(part["dataset"], [f"class {k}" for k in range(10)])
    # Some images are hard for every model, as in life; so pairs of models agree on most.
    hardness = np.random.default_rng(17).random(images)
    noise = np.random.default_rng([part["seed"], len(part["start"]), 3]).random(images)
    score = 0.7 * hardness + 0.3 * noise
    share = accuracy(part["dataset"], part["start"], part["seed"])
    correct = score <= np.sort(score)[min(images - 1, max(0, round(share * images) - 1))]
    labels = np.random.default_rng(18).integers(0, len(names), images).astype(np.int32)
    predictions = np.where(correct, labels, (labels + 1) % len(names)).astype(np.int32)
    ids = np.random.default_rng(19).permutation(images).astype(np.int64)
    path = run.job(item.digest).predictions
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "id": ids,
        "key": [f"image-{i:05d}" for i in ids],
        "label": labels[ids],
        "prediction": predictions[ids],
        "correct": correct[ids],
        "nll": np.full(images, 0.5, np.float32),
        "confidence": np.where(correct, 0.9, 0.6)[ids].astype(np.float32),
    }
    pq.write_table(pa.table(columns), path)
    metrics = {"eval/top1": float(correct.mean()), "eval/n": float(images), "eval/nll": 0.5}
    outputs = {
        "predictions": f"jobs/{item.digest}/predictions.parquet",
        "test_fingerprint": digest_of([f"prepare/{part['dataset']}", "test"]) * 4,
        "classes": names,
    }
    log = EventLog(run.openings)
    fingerprint = outputs["test_fingerprint"]
    log({"time": START, "job": item.digest, "name": item.job.name, "dataset": fingerprint})
    log.close()
    return metrics, outputs

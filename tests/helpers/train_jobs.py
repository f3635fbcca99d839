"""Training jobs on a tiny dataset, as the orchestrator would write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.config import GlyphsSource, TrainJob, WriteSettings
from pipeline.data.write import prepare
from pipeline.rundir import JobDir, RunDir, write_json


def write_glyphs(directory: Path, image_size: int = 16) -> None:
    """Six classes of drawings: 60 samples in train, 18 in test."""
    source = GlyphsSource(
        source="glyphs",
        classes=6,
        train_per_class=10,
        test_per_class=3,
        image_size=image_size,
        write=WriteSettings(shard_samples=25),
    )
    prepare(source, directory)


def write_train_job(run_dir: Path, digest: str, job: TrainJob) -> JobDir:
    """job.json of a pre-training, in its directory."""
    directory = RunDir(run_dir).job(digest)
    head = {"schema": 1, "digest": digest, "name": "pretrain", "stage": "pretrain", "stage_version": 1}
    write_json(directory.job, {**head, "slice": {}, "inputs": {}, "work": job.model_dump(mode="json")})
    return directory


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks an attempt to stop after so many steps: it is polled before the first one and in each."""
    polls = iter(range(10**9))
    return lambda: next(polls) >= steps

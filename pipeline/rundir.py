"""The names of all files of a run: the contract between its parts.

    RUN/
      config.resolved.yaml         every setting, defaults filled in; written before any work
      lease.json                   which driver holds the run
      events.jsonl                 what the driver did: job states, retries
      result.json                  how the last command ended
      openings.jsonl               each time a test split was opened
      report/                      report.html and the tables and pictures in it; made_by.json: whose it is
      launch/                      token and logs of the local Ray
      tracking.json                how far the events have been sent to MLflow
      kept.json                    what of all this is at the URL `remote`, see pipeline/keeping.py
      jobs/DIGEST/
        job.json                   what the job is: name, stage, settings, inputs
        result.json                written last, by rename: the job is done
        events.jsonl               what its rank 0 reports
        generation                 number of the newest attempt; older ones may not finish anything
        skipped.json               batches left out, see pipeline/train/rewinding.py
        stop                       there while a stop is asked for
        logs/attempt-0001/rank-00000.log
        samples/attempt-0001/rank-00000.jsonl     ids of the samples of each step
        checkpoints/step-000001000/               see pipeline/train/checkpoint.py
        profiles/step-000000012-rank-00000.json.gz    traces of steps, see pipeline/train/profiling.py
        weights.safetensors        the trained model
        predictions.parquet        id, label, prediction and correct of each test image

Files are replaced by rename, so a reader sees the old or the new content, never half.
Standard library only.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JobDir:
    """Paths of one job, `RUN/jobs/DIGEST`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.job = path / "job.json"
        self.result = path / "result.json"
        self.events = path / "events.jsonl"
        self.generation = path / "generation"
        self.stop = path / "stop"
        self.skipped = path / "skipped.json"
        self.checkpoints = path / "checkpoints"
        self.weights = path / "weights.safetensors"
        self.predictions = path / "predictions.parquet"
        self.profiles = path / "profiles"

    def rank_log(self, attempt: int, rank: int) -> Path:
        return self.path / "logs" / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.log"

    def samples(self, attempt: int, rank: int) -> Path:
        return self.path / "samples" / f"attempt-{attempt:04d}" / f"rank-{rank:05d}.jsonl"

    def profile(self, step: int, rank: int) -> Path:
        return self.profiles / f"step-{step:09d}-rank-{rank:05d}.json.gz"

    def read_result(self) -> dict[str, Any] | None:
        """The job's result, or None while it is not done."""
        return read_json(self.result)

    def read_generation(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        try:
            return int(self.generation.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def next_generation(self) -> int:
        """Start a new attempt: every older one is fenced off from now on."""
        generation = self.read_generation() + 1
        write_atomic(self.generation, f"{generation}\n".encode())
        return generation


class RunDir:
    """Paths of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.resolved.yaml"
        self.lease = path / "lease.json"
        self.events = path / "events.jsonl"
        self.result = path / "result.json"
        self.openings = path / "openings.jsonl"
        self.report = path / "report"
        self.report_maker = self.report / "made_by.json"
        self.launch = path / "launch"
        self.tracking = path / "tracking.json"
        self.kept = path / "kept.json"
        self.jobs = path / "jobs"

    def job(self, digest: str) -> JobDir:
        return JobDir(self.jobs / digest)


def write_atomic(path: Path, data: bytes, mode: int = 0o640) -> None:
    """Replace `path` by `data`: written beside it, flushed to the disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename in `path` survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace `path` by `value` as JSON, keys in order, so that equal values give equal bytes."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`; None when the file is not there."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    assert isinstance(value, dict), f"{path} holds no JSON object"
    return value

"""Trainings and programs on several ranks, as the benches start them: real processes, under torchrun.

A training is a job that the orchestrator could have written: a dataset of drawings, job.json, and
`pipeline.train.worker` on every rank. What it says about itself (events.jsonl) is what a bench reads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import DataView, FolderSource, GlyphsSource, TrainJob, TrainSettings, WriteSettings
from pipeline.data.write import prepare
from pipeline.errors import EnvironmentUnfit
from pipeline.events import read_events
from pipeline.rundir import JobDir, RunDir, write_json

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 2000  # characters of a failed program's last words


def on_ranks(ranks: int, module: str, arguments: Sequence[str], device: str) -> None:
    """Run `python -m module arguments` on every rank, and wait. They meet on this machine's loopback.

    Raises:
        EnvironmentUnfit: one of them failed; its last words are in the message.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if device == "cpu":
        environment.setdefault("OMP_NUM_THREADS", "1")  # ranks share the cores
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    ended = subprocess.run(
        [*torchrun, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise EnvironmentUnfit(
            f"{module} ended with code {ended.returncode}: …{_own_words(ended.stderr)[-_TAIL:]}",
            f"{ranks} ranks that run to their end",
            "look at the last words above; fewer ranks or a smaller model need less memory",
        )


def _own_words(stderr: str) -> str:
    """What the ranks said, without what torchrun says of their end."""
    return stderr.split("torch/distributed/elastic/", 1)[0].rsplit("\n", 1)[0]


def write_drawings(run: Path, image_size: int, classes: int = 10, per_class: int = 100) -> DataView:
    """A prepared dataset in `run`, which must not have one yet."""
    source = GlyphsSource(
        source="glyphs",
        classes=classes,
        train_per_class=per_class,
        test_per_class=1,
        image_size=image_size,
        write=WriteSettings(),
    )
    prepare(source, run / "data")
    return DataView(path="data", split="train")


def write_photos(run: Path, photos: Path) -> DataView:
    """The same of photos in train/CLASS and test/CLASS, packed with a shorter side of 256 px."""
    source = FolderSource(source="folder", path=str(photos.absolute()), write=WriteSettings(shorter_side=256))
    prepare(source, run / "data")
    return DataView(path="data", split="train")


def run_job(
    run: Path, name: str, data: DataView, settings: TrainSettings, ranks: int, device: str
) -> list[dict[str, Any]]:
    """Train to the end as job `name` of `run`; its events."""
    job = write_train_job(run, name, TrainJob(data=data, settings=settings, seed=0))
    on_ranks(ranks, "pipeline.train.worker", [str(job.job), f"--device={device}"], device)
    return read_events(job.events)[0]


def write_train_job(run: Path, digest: str, job: TrainJob) -> JobDir:
    """job.json of a pre-training, in its directory of `run`."""
    directory = RunDir(run).job(digest)
    head = {"schema": 1, "digest": digest, "name": "pretrain", "stage": "pretrain", "stage_version": 1}
    write_json(directory.job, {**head, "slice": {}, "inputs": {}, "work": job.model_dump(mode="json")})
    return directory

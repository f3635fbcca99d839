"""Runs one job in this process, from its job.json to its result.json.

Called in the processes that do the work. What a kind of job needs is imported when it is done: PyTorch and
the training take two seconds of a core, the writing of datasets as much again, and few processes do both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.config import DatasetSettings, WebdatasetSource
from pipeline.data.progress import Run
from pipeline.errors import StopRequested, TrainingError
from pipeline.events import EventLog
from pipeline.rundir import RunDir, read_json
from pipeline.stages import finetune, prepare
from pipeline.stages.catalog import write_result
from pipeline.train.stopping import StopSwitch

_DATASET: TypeAdapter[DatasetSettings] = TypeAdapter(DatasetSettings)


def execute(
    run_dir: Path, digest: str, stop_asked: Callable[[], bool] | None = None, spread: Run = map
) -> None:
    """Do the job. `spread` does the parts of one that has many alike, as `map` would; see fanout.py.

    Raises:
        VitlineError: a fault of the input, the data or the training.
        StopRequested: `stop_asked` or the job's stop file was seen.
    """
    run = RunDir(run_dir)
    job = read_json(run.job(digest).job)
    assert job is not None, f"no job.json for {digest}"
    if job["stage"] == prepare.STAGE:
        stop = StopSwitch(run.job(digest).stop, stop_asked)
        _prepare(run, digest, job, _until(stop, spread))
    elif job["stage"] == finetune.CHOOSE:
        _choose(run, digest, job, stop_asked)
    else:
        _train(run, digest, stop_asked)


def _train(run: RunDir, digest: str, stop_asked: Callable[[], bool] | None) -> None:
    from pipeline.train import worker

    worker.run(run.path, digest, stop_asked=stop_asked)


def _choose(run: RunDir, digest: str, job: dict[str, Any], stop_asked: Callable[[], bool] | None) -> None:
    """A rate that diverges is an answer, not a failure: it has a result without a score."""
    started = time.time()
    try:
        _train(run, digest, stop_asked)
    except TrainingError as error:
        write_result(run, digest, job, started, metrics={}, outputs={"diverged": error.found})


def _until(stop: Callable[[], bool], spread: Run) -> Run:
    """The same as `spread`, which ends after the part in work once a stop is asked for."""

    def parts(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        for result in spread(function, items):
            if stop():
                raise StopRequested(
                    "a stop was asked for while a dataset was written",
                    "the whole dataset",
                    "run the same command again: shards that are written stay",
                )
            yield result

    return parts


def _prepare(run: RunDir, digest: str, job: dict[str, Any], spread: Run) -> None:
    from pipeline.data.write import prepare as write_dataset

    started = time.time()
    settings = _DATASET.validate_python(job["slice"]["dataset"])
    manifest = write_dataset(
        settings, run.job(digest).path, report=EventLog(run.job(digest).events), run=spread
    )
    bad = [
        f"{name}/{image.key}: {image.reason}"
        for name, split in manifest.splits.items()
        for image in split.bad
    ]
    what = "faults of shards" if isinstance(settings, WebdatasetSource) else "unreadable images"
    write_result(
        run,
        digest,
        job,
        started,
        metrics={f"data/{name}_samples": float(split.samples) for name, split in manifest.splits.items()},
        outputs={
            "classes": len(manifest.classes),
            "fingerprints": {name: split.fingerprint for name, split in manifest.splits.items()},
            "unreadable": len(bad),
            "unreadable_images": bad,
            "note": f"{len(bad)} {what} left out, the first: {bad[0]}" if bad else "",
        },
    )

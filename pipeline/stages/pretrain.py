"""Stage pretrain: the long training, by a gang of ranks."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.config import DataMixture, DataView, PretrainSettings, RunConfig, TrainJob, TrainSettings
from pipeline.data.exclusions import exclusions_digest
from pipeline.errors import ConfigError
from pipeline.graph import Job
from pipeline.rundir import RunDir
from pipeline.stages import prepare
from pipeline.train.plan import batch_shape
from pipeline.train.tensorfile import hash_file

STAGE = "pretrain"
VERSION = 1

# Settings that change how the work is done and not what comes out (P1): they may change between two
# attempts, and the same job goes on from its checkpoint.
_HOW = {
    *("gang", "threads", "micro_batch", "engine", "checkpoint", "validation"),
    *("log_every", "log_samples", "profile"),
}


def jobs(config: RunConfig) -> list[Job]:
    settings = config.pretrain
    gang = settings.gang
    common = {"precision": settings.engine.precision, "seed": config.seed, **_data_identity(settings)}
    exclude = _HOW | {"dataset", "mixture", "exclude", "start"}
    sizes = gang_sizes(settings)
    return [
        Job(
            name=STAGE,
            stage=STAGE,
            version=VERSION,
            slice={**settings.model_dump(mode="json", exclude=exclude), **common},
            identity={
                **settings.model_dump(mode="json", exclude=exclude, exclude_defaults=True),
                **common,
            },
            inputs={role(settings, name): prepare.job_name(name) for name in settings.shares},
            cpus=gang.cpus_per_worker,
            gpus=gang.gpus_per_worker,
            workers=max(sizes),
            sizes=sizes,
        )
    ]


def role(settings: PretrainSettings, dataset: str) -> str:
    """Under which name the job's inputs hold a dataset."""
    return "data" if settings.mixture is None else f"data/{dataset}"


def _data_identity(settings: PretrainSettings) -> dict[str, Any]:
    """Weights of a mixture, and what is left out; the datasets themselves are inputs."""
    found: dict[str, Any] = {}
    if settings.mixture is not None:
        found["mixture"] = settings.shares
    if settings.exclude:
        found["exclude"] = {name: exclusions_digest(Path(file)) for name, file in settings.exclude.items()}
    if settings.start is not None:
        # Which weights they are counts, not where they lie.
        found["start"] = _hash_of(Path(settings.start))
    return found


def _hash_of(file: Path) -> str:
    try:
        return hash_file(file).sha256
    except OSError as error:
        raise ConfigError(
            f"pretrain.start {file} cannot be read: {error.strerror}",
            "a weights file, as RUN/jobs/DIGEST/weights.safetensors",
            "correct pretrain.start, or leave it out to begin from scratch",
        ) from None


def gang_sizes(settings: PretrainSettings) -> tuple[int, ...]:
    """Every number of ranks in the gang's range over which the batch divides.

    Raises:
        ConfigError: there is none; the nearest batch that works is named.
    """
    gang = settings.gang
    least = gang.min_workers or gang.workers
    if least > gang.workers:
        raise ConfigError(
            f"pretrain.gang.min_workers {least} above workers {gang.workers}",
            "a range from min_workers to workers",
            "lower min_workers or raise workers",
        )
    unit = settings.micro_batch or 1
    sizes = tuple(n for n in range(least, gang.workers + 1) if settings.batch % (n * unit) == 0)
    if not sizes:
        # Its message names the nearest batch that works.
        batch_shape(settings.batch, settings.micro_batch, gang.workers)
    return sizes


def work(
    settings: PretrainSettings, seed: int, inputs: Mapping[str, str], exclude: Mapping[str, str]
) -> TrainJob:
    """What the ranks do; `inputs`: digests of the datasets, `exclude`: what `keep_exclusions` gave."""
    plain = TrainSettings.model_validate(
        settings.model_dump(exclude={"dataset", "mixture", "exclude", "start", "gang"})
    )
    return TrainJob(
        data=data(settings, inputs, "train", exclude),
        validate_on=data(settings, inputs, "test", {}),
        settings=plain,
        # Relative paths count from where the run was started, and the ranks are somewhere else.
        start=None if settings.start is None else str(Path(settings.start).absolute()),
        keep_head=True,
        seed=seed,
    )


def data(
    settings: PretrainSettings,
    inputs: Mapping[str, str],
    split: Literal["train", "test"],
    exclude: Mapping[str, str],
) -> DataView | DataMixture:
    """What is read; `exclude` maps datasets to lists, relative to the run or absolute."""
    views = [
        DataView(path=f"jobs/{inputs[role(settings, name)]}", split=split, exclude=exclude.get(name))
        for name in settings.shares
    ]
    if settings.mixture is None:
        return views[0]
    return DataMixture(parts=tuple(views), weights=tuple(settings.shares.values()))


def keep_exclusions(settings: PretrainSettings, run: RunDir, digest: str) -> dict[str, str]:
    """Copy the lists of samples to leave out into the job, where every rank sees them; dataset → copy."""
    kept = {}
    for name, file in settings.exclude.items():
        copy = run.job(digest).path / f"exclude-{name}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        kept[name] = str(copy.relative_to(run.path))
    return kept

"""Stage pretrain: the long training, by a gang of ranks."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import DataView, PretrainSettings, RunConfig, TrainJob, TrainSettings
from pipeline.errors import ConfigError
from pipeline.graph import Job
from pipeline.stages import prepare
from pipeline.train.plan import batch_shape

STAGE = "pretrain"
VERSION = 1

# Settings that change how the work is done and not what comes out (P1): they may change between two
# attempts, and the same job goes on from its checkpoint.
_HOW = {"gang", "threads", "log_every", "log_samples", "checkpoint", "micro_batch", "engine"}


def jobs(config: RunConfig) -> list[Job]:
    settings = config.pretrain
    gang = settings.gang
    common = {"precision": settings.engine.precision, "seed": config.seed}
    exclude = _HOW | {"dataset"}
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
            inputs={"data": prepare.job_name(settings.dataset)},
            cpus=gang.cpus_per_worker,
            gpus=gang.gpus_per_worker,
            workers=max(sizes),
            sizes=sizes,
        )
    ]


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


def work(settings: PretrainSettings, seed: int, inputs: Mapping[str, str]) -> TrainJob:
    """What the ranks do; `inputs` holds the digest of the dataset."""
    plain = TrainSettings.model_validate(settings.model_dump(exclude={"dataset", "gang"}))
    directory = f"jobs/{inputs['data']}"
    return TrainJob(
        data=DataView(path=directory, split="train"),
        validate_on=DataView(path=directory, split="test"),
        settings=plain,
        seed=seed,
    )

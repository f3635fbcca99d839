"""Stage pretrain: the long training, by a gang of ranks."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import DataView, PretrainSettings, RunConfig, TrainJob, TrainSettings
from pipeline.graph import Job
from pipeline.stages import prepare

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
            workers=gang.workers,
        )
    ]


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

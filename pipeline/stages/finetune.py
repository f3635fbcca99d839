"""Stages choose and finetune: the fan-out over transfer datasets, starts, learning rates and seeds.

The learning rate is chosen once for a dataset and start: each rate of the grid trains on a part of train
(job choose/DATASET/START/lrRATE) and is scored on the part held out. The best one then trains on all of
train, once a seed (job finetune/DATASET/START/seedN). The test split is not touched here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    FinetuneProtocol,
    RunConfig,
    TrainJob,
    TrainSettings,
)
from pipeline.errors import TrainingError
from pipeline.graph import Job
from pipeline.rundir import RunDir
from pipeline.stages import prepare, pretrain

CHOOSE = "choose"
STAGE = "finetune"
VERSION = 1


def job_name(dataset: str, start: str, seed: int) -> str:
    return f"{STAGE}/{dataset}/{start}/seed{seed}"


def choice_name(dataset: str, start: str, rate: float) -> str:
    return f"{CHOOSE}/{dataset}/{start}/lr{rate:g}"


def jobs(config: RunConfig) -> list[Job]:
    """The choices of every dataset and start, and the trainings with what was chosen."""
    transfer, result = config.transfer, []
    if not isinstance(transfer.protocol, FinetuneProtocol):
        return []
    for dataset in transfer.datasets:
        for start in transfer.starts:
            result.extend(_jobs_of(config, transfer.protocol.on(dataset), dataset, start))
    return result


def _jobs_of(config: RunConfig, protocol: FinetuneProtocol, dataset: str, start: str) -> list[Job]:
    transfer, rates = config.transfer, protocol.learning_rates
    inputs = {"data": prepare.job_name(dataset)}
    if start == "pretrained":
        inputs["model"] = pretrain.STAGE

    def job(name: str, stage: str, inputs: Mapping[str, str], **own: Any) -> Job:
        return Job(
            name=name,
            stage=stage,
            version=VERSION,
            slice={**_settings_read(config, protocol, dataset, start, full=True), **own},
            identity={**_settings_read(config, protocol, dataset, start, full=False), **own},
            inputs=inputs,
            cpus=config.fanout.cpus_per_job,
            gpus=config.fanout.gpus_per_job,
        )

    # One rate leaves nothing to choose.
    choices = [
        job(choice_name(dataset, start, rate), CHOOSE, inputs, learning_rate=rate, seed=transfer.seeds[0])
        for rate in (rates if len(rates) > 1 else ())
    ]
    chosen_from = {f"lr{choice.slice['learning_rate']:g}": choice.name for choice in choices}
    trainings = [
        job(
            job_name(dataset, start, seed),
            STAGE,
            {**inputs, **chosen_from},
            learning_rates=list(rates),
            seed=seed,
        )
        for seed in transfer.seeds
    ]
    return [*choices, *trainings]


def _settings_read(
    config: RunConfig, protocol: FinetuneProtocol, dataset: str, start: str, *, full: bool
) -> dict[str, Any]:
    """What all jobs of a dataset and start read; with `full` the defaults too."""
    how = {"learning_rates", "threads", "micro_batch", "groups", "per_dataset"}
    return {
        "dataset": dataset,
        "start": start,
        "protocol": protocol.model_dump(mode="json", exclude=how, exclude_defaults=not full),
        "model": config.pretrain.model.model_dump(mode="json", exclude_defaults=not full),
        "subset_seed": config.seed,
    }


def work(config: RunConfig, run: RunDir, job: Job, inputs: Mapping[str, str]) -> TrainJob:
    """What the worker of a choose or finetune job does; reads the choices' results."""
    protocol = config.transfer.protocol
    assert isinstance(protocol, FinetuneProtocol), f"{job.name} of a protocol that trains nothing"
    protocol = protocol.on(job.slice["dataset"])
    choosing = job.stage == CHOOSE
    rate = job.slice["learning_rate"] if choosing else _chosen_rate(run, job, inputs)
    directory = f"jobs/{inputs['data']}"
    view = DataView(path=directory, split="train", samples=protocol.train_samples, seed=config.seed)
    if choosing:
        view = view.model_copy(update={"held_out": protocol.held_out, "part": "kept"})
    return TrainJob(
        data=view,
        validate_on=view.model_copy(update={"part": "held_out"}) if choosing else None,
        settings=_train_settings(config, protocol, rate),
        start=f"jobs/{inputs['model']}/weights.safetensors" if "model" in inputs else None,
        seed=int(job.slice["seed"]),
    )


def _train_settings(config: RunConfig, protocol: FinetuneProtocol, rate: float) -> TrainSettings:
    return TrainSettings(
        # The pre-training head goes as a whole; one zero-initialised layer takes its place (ViT 3.2).
        model=config.pretrain.model.model_copy(update={"representation": False}),
        image_size=protocol.image_size,
        duration=protocol.duration,
        batch=protocol.batch,
        micro_batch=protocol.micro_batch,
        average=protocol.average,
        optimizer=protocol.optimizer.model_copy(update={"learning_rate": rate}),
        augment=protocol.augment,
        engine=EngineSettings(kind="plain", precision=protocol.precision, self_test=False),
        checkpoint=CheckpointSettings(keep=1),
        threads=protocol.threads,
    )


def _chosen_rate(run: RunDir, job: Job, inputs: Mapping[str, str]) -> float:
    """The rate with the best held-out accuracy; on a tie the lower loss, then the smaller rate."""
    rates: list[float] = list(job.slice["learning_rates"])
    if len(rates) == 1:
        return rates[0]
    scores = []
    for rate in rates:
        result = run.job(inputs[f"lr{rate:g}"]).read_result()
        # A rate that diverged has a result without a score.
        if result is not None and "val/top1" in result["metrics"]:
            scores.append((-result["metrics"]["val/top1"], result["metrics"]["val/loss"], rate))
    if not scores:
        raise TrainingError(
            f"no learning rate of {rates} trained to its end for {job.name}",
            "at least one",
            "see the choose jobs' logs; smaller rates or clipping may help",
        )
    return min(scores)[2]

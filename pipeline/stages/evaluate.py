"""Stage evaluate: one scoring of each fine-tuned model on the locked test split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import DataView, EvaluateJob, RunConfig
from pipeline.graph import Job
from pipeline.stages import finetune, prepare

STAGE = "evaluate"
VERSION = 1


def job_name(dataset: str, start: str, seed: int) -> str:
    return f"{STAGE}/{dataset}/{start}/seed{seed}"


def jobs(config: RunConfig) -> list[Job]:
    transfer = config.transfer
    protocol = transfer.protocol

    def settings(dataset: str, start: str, seed: int) -> dict[str, Any]:
        return {
            "dataset": dataset,
            "start": start,
            "seed": seed,
            "protocol": protocol.name,
            "image_size": protocol.image_size,
            "evaluate": protocol.augment.evaluate,
            "larger": protocol.augment.larger,
        }

    return [
        Job(
            name=job_name(dataset, start, seed),
            stage=STAGE,
            version=VERSION,
            slice=settings(dataset, start, seed),
            identity=settings(dataset, start, seed),
            inputs={
                "data": prepare.job_name(dataset),
                "model": finetune.job_name(dataset, start, seed),
            },
            cpus=config.fanout.cpus_per_job,
            gpus=config.fanout.gpus_per_job,
        )
        for dataset in transfer.datasets
        for start in transfer.starts
        for seed in transfer.seeds
    ]


def work(config: RunConfig, inputs: Mapping[str, str]) -> EvaluateJob:
    protocol = config.transfer.protocol
    return EvaluateJob(
        data=DataView(path=f"jobs/{inputs['data']}", split="test"),
        weights=f"jobs/{inputs['model']}/weights.safetensors",
        image_size=protocol.image_size,
        augment=protocol.augment,
        threads=protocol.threads,
    )

"""Stage evaluate: one scoring of each model on the locked test split.

Of a fine-tuned model it is a forward pass. A protocol that trains nothing (few_shot, knn, linear) has its
classifier fitted here, to the features of the network as pre-training left it; the test split is opened
after that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import (
    DataView,
    EvaluateJob,
    FewShotProtocol,
    FinetuneProtocol,
    ProbeJob,
    ProbeProtocol,
    RunConfig,
)
from pipeline.graph import Job
from pipeline.stages import finetune, prepare, pretrain

STAGE = "evaluate"
VERSION = 2  # 2: confidence of each prediction, calibration error


def job_name(dataset: str, start: str, seed: int) -> str:
    return f"{STAGE}/{dataset}/{start}/seed{seed}"


def jobs(config: RunConfig) -> list[Job]:
    transfer = config.transfer
    return [
        _job(config, dataset, start, seed)
        for dataset in transfer.datasets
        for start in transfer.starts
        for seed in transfer.seeds
    ]


def _job(config: RunConfig, dataset: str, start: str, seed: int) -> Job:
    protocol = config.transfer.protocol
    inputs = {"data": prepare.job_name(dataset)}
    if isinstance(protocol, FinetuneProtocol):
        protocol = protocol.on(dataset)
        inputs["model"] = finetune.job_name(dataset, start, seed)
    elif start == "pretrained":
        inputs["model"] = pretrain.STAGE
    settings = {
        "dataset": dataset,
        "start": start,
        "seed": seed,
        "protocol": protocol.name,
        "image_size": protocol.image_size,
        "evaluate": protocol.augment.evaluate,
        "larger": protocol.augment.larger,
    }
    return Job(
        name=job_name(dataset, start, seed),
        stage=STAGE,
        version=VERSION,
        slice={**settings, **_probe(config, protocol, full=True)},
        identity={**settings, **_probe(config, protocol, full=False)},
        inputs=inputs,
        cpus=config.fanout.cpus_per_job,
        gpus=config.fanout.gpus_per_job,
    )


def _probe(config: RunConfig, protocol: FinetuneProtocol | ProbeProtocol, *, full: bool) -> dict[str, Any]:
    """What a probe reads besides; with `full` the defaults too."""
    if isinstance(protocol, FinetuneProtocol):
        return {}
    how = {"threads", "groups", "name", "image_size", "augment"}
    return {
        "probe": protocol.model_dump(mode="json", exclude=how, exclude_defaults=not full),
        "model": config.pretrain.model.model_dump(mode="json", exclude_defaults=not full),
    }


def work(config: RunConfig, job: Job, inputs: Mapping[str, str]) -> EvaluateJob | ProbeJob:
    protocol, directory = config.transfer.protocol, f"jobs/{inputs['data']}"
    weights = f"jobs/{inputs['model']}/weights.safetensors" if "model" in inputs else None
    test = DataView(path=directory, split="test")
    if not isinstance(protocol, FinetuneProtocol):
        seed = int(job.slice["seed"])
        samples = None if isinstance(protocol, FewShotProtocol) else protocol.train_samples
        return ProbeJob(
            train=DataView(path=directory, split="train", samples=samples, seed=seed),
            data=test,
            weights=weights,
            model=config.pretrain.model,
            protocol=protocol,
            seed=seed,
        )
    protocol = protocol.on(job.slice["dataset"])
    assert weights is not None, "a fine-tuned model has weights"
    return EvaluateJob(
        data=test,
        weights=weights,
        image_size=protocol.image_size,
        augment=protocol.augment,
        # As many as training held at once fit; which number it is changes no score.
        batch=min(256, protocol.micro_batch or 256),
        threads=protocol.threads,
    )

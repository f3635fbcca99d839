"""All stages together: the jobs of a configuration, and the files that describe and end each."""

from __future__ import annotations

import time
from typing import Any

from pipeline.config import RunConfig
from pipeline.graph import Job, Planned
from pipeline.rundir import RunDir, write_json
from pipeline.stages import compare, evaluate, finetune, prepare, pretrain

# In the order in which they start; those before choose have the right of way on the cluster.
STAGES = (
    prepare.STAGE,
    pretrain.STAGE,
    finetune.CHOOSE,
    finetune.STAGE,
    evaluate.STAGE,
    compare.STAGE,
)


def all_jobs(config: RunConfig) -> list[Job]:
    """Every job of the run, inputs before what needs them."""
    return [job for stage in (prepare, pretrain, finetune, evaluate, compare) for job in stage.jobs(config)]


def write_job(config: RunConfig, run: RunDir, planned: Planned) -> None:
    """Write job.json. Its inputs must be done: a finetune job reads what was chosen for it."""
    write_json(
        run.job(planned.digest).job,
        {
            "schema": 1,
            "digest": planned.digest,
            "name": planned.job.name,
            "stage": planned.job.stage,
            "stage_version": planned.job.version,
            "slice": dict(planned.job.slice),
            "inputs": dict(planned.inputs),
            "work": _work(config, run, planned),
        },
    )


def _work(config: RunConfig, run: RunDir, planned: Planned) -> dict[str, Any]:
    stage = planned.job.stage
    if stage == pretrain.STAGE:
        exclude = pretrain.keep_exclusions(config.pretrain, run, planned.digest)
        return pretrain.work(config.pretrain, config.seed, planned.inputs, exclude).model_dump(mode="json")
    if stage in (finetune.CHOOSE, finetune.STAGE):
        return finetune.work(config, run, planned.job, planned.inputs).model_dump(mode="json")
    if stage == evaluate.STAGE:
        return evaluate.work(config, planned.job, planned.inputs).model_dump(mode="json")
    return {}


def write_result(
    run: RunDir,
    digest: str,
    job: dict[str, Any],
    started: float,
    metrics: dict[str, float],
    outputs: dict[str, Any],
) -> None:
    """Write result.json: from now on the job is done."""
    write_json(
        run.job(digest).result,
        {
            "schema": 1,
            "digest": digest,
            "name": job["name"],
            "stage": job["stage"],
            "finished": time.time(),
            "seconds": time.time() - started,
            "metrics": metrics,
            "outputs": outputs,
        },
    )

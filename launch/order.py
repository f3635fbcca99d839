"""The command `vitline data order`: which samples a batch of pre-training holds."""

from __future__ import annotations

import json

from pipeline.config import DataView, RunConfig
from pipeline.data.describe import describe_batch
from pipeline.data.view import open_view
from pipeline.driver import plan_run, run_dir_of
from pipeline.errors import UserError
from pipeline.stages import pretrain


def print_order(config: RunConfig, step: int, ranks: int) -> None:
    """Print a JSON line for each sample of batch `step`.

    Raises:
        UserError: the dataset is not prepared yet.
    """
    run = run_dir_of(config)
    job = next(item for item in plan_run(config, run) if item.job.stage == pretrain.STAGE)
    digest = job.inputs["data"]
    if not run.job(digest).result.exists():
        raise UserError(
            f"the dataset {config.pretrain.dataset!r} is not prepared",
            "shards, whose sample counts make the order",
            "run `vitline run` on this configuration first",
        )
    view = open_view(DataView(path=f"jobs/{digest}", split="train"), run.path)
    settings = config.pretrain
    rows = describe_batch(
        view, settings.order, seed=config.seed, batch=settings.batch, step=step, ranks=ranks
    )
    for row in rows:
        print(json.dumps(row))

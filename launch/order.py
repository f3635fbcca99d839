"""The command `vitline data order`: which samples a batch of pre-training holds."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.data.describe import describe_batch
from pipeline.data.mixture import open_data
from pipeline.driver import plan_run, run_dir_of
from pipeline.errors import UserError
from pipeline.stages import pretrain


def print_order(config: RunConfig, step: int, ranks: int) -> None:
    """Print a JSON line for each sample of batch `step`.

    Raises:
        UserError: a dataset is not prepared yet.
    """
    run = run_dir_of(config)
    job = next(item for item in plan_run(config, run) if item.job.stage == pretrain.STAGE)
    settings = config.pretrain
    for name in settings.shares:
        if not run.job(job.inputs[pretrain.role(settings, name)]).result.exists():
            raise UserError(
                f"the dataset {name!r} is not prepared",
                "shards, whose sample counts make the order",
                "run `vitline run` on this configuration first",
            )
    exclude = {name: str(Path(file).absolute()) for name, file in settings.exclude.items()}
    view = open_data(pretrain.data(settings, job.inputs, "train", exclude), run.path)
    rows = describe_batch(
        view, settings.order, seed=config.seed, batch=settings.batch, step=step, ranks=ranks
    )
    for row in rows:
        print(json.dumps(row))

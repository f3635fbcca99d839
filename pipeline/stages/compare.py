"""Stage compare: the tables, plots and the report over all evaluations. Runs in the driver."""

from __future__ import annotations

from pipeline.config import RunConfig
from pipeline.graph import Job
from pipeline.stages import evaluate, pretrain

STAGE = "compare"
VERSION = 1


def jobs(config: RunConfig) -> list[Job]:
    cells = evaluate.jobs(config)
    settings = {"name": config.name, "protocol": config.transfer.protocol.name}
    return [
        Job(
            name=STAGE,
            stage=STAGE,
            version=VERSION,
            slice=settings,
            identity=settings,
            inputs={"pretrain": pretrain.STAGE, **{cell.name: cell.name for cell in cells}},
        )
    ]

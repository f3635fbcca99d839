"""Stage compare: the tables, plots and the report over all evaluations. Runs in the driver."""

from __future__ import annotations

from typing import Any

from pipeline.config import RunConfig
from pipeline.graph import Job
from pipeline.stages import evaluate, pretrain

STAGE = "compare"
VERSION = 2  # 2: pictures, confusions, the timeline and the Pareto front in the report


def jobs(config: RunConfig) -> list[Job]:
    cells = evaluate.jobs(config)
    protocol = config.transfer.protocol
    settings: dict[str, Any] = {"name": config.name, "protocol": protocol.name}
    if protocol.groups:
        settings["groups"] = {group: list(names) for group, names in protocol.groups.items()}
    if not config.report.images:
        settings["images"] = False
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

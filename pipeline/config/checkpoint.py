"""Checkpoints of a training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Duration, Settings


class CheckpointSettings(Settings):
    """When a training saves, what it keeps, and where else."""

    every: Duration | Literal["auto"] | None = Field(
        None, description="None: only at the end and when stopped; auto: from the measured cost of a save"
    )
    mtbf_hours: float | None = Field(
        None,
        gt=0,
        description="every: auto only: mean time between failures of one rank, hours; None: 50,000",
    )
    keep: int = Field(2, ge=1, description="newest complete ones that stay")
    keep_every: Duration | None = Field(
        None, description="the first one at or after each multiple of this stays for good; None: none"
    )
    keep_best: Literal["top1", "loss"] | None = Field(
        None,
        description="save after the best validation on the way so far, keep that one, and export its weights"
        " at the end beside the last; None: none",
    )
    remote: str | None = Field(
        None,
        description="URL (fsspec) that each one is copied to in the background, and resumed from where it is"
        " newer; None: local only",
    )

    @model_validator(mode="after")
    def _settings_act(self) -> CheckpointSettings:
        if self.mtbf_hours is not None and self.every != "auto":
            raise ValueError(f"mtbf_hours has no effect on every {self.every!r}; set every: auto")
        if self.keep_every is not None and self.every is None:
            raise ValueError("keep_every has no effect without saves on the way; set every")
        return self

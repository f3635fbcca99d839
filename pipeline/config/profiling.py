"""Which steps of a training are looked into; the training is the same with and without."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.base import Duration, Settings


class ProfileSettings(Settings):
    """PyTorch's profiler."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="traced by every rank into the job's directory, as [12, 13]; they take seconds longer"
    )
    communication: Duration | None = Field(
        None,
        description="of one step in so many: its share of communication (0 on one rank); None: never",
    )

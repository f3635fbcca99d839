"""What all settings share: frozen, strict about names, durations with their unit."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict


class Settings(BaseModel):
    """Frozen, and strict about names: a typo is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


_DURATION = re.compile(r"^\s*(\d[\d_]*(?:\.\d+)?)\s*(steps?|epochs?|samples?)\s*$")


def _check_duration(value: object) -> object:
    if isinstance(value, str) and not _DURATION.match(value):
        raise ValueError(
            "expected a number and its unit, as in '300 steps', '90 epochs' or '1_000_000 samples'"
        )
    return value


Duration = Annotated[str, BeforeValidator(_check_duration)]


def to_steps(duration: str, *, batch: int, samples: int) -> int:
    """Steps in `duration`: the one place where durations are converted.

    Args:
        duration: '300 steps', '90 epochs' or '1_000_000 samples'.
        batch: samples in a step, over all ranks.
        samples: samples in an epoch.

    Epochs and samples are rounded to the nearest step. '0 steps' is 0; any other duration is at
    least one step.
    """
    match = _DURATION.match(duration)
    assert match, f"a duration was not checked: {duration!r}"
    number = float(match.group(1).replace("_", ""))
    per_unit = {"s": 1.0, "e": samples / batch, "a": 1.0 / batch}
    unit = "a" if match.group(2).startswith("sa") else match.group(2)[0]
    steps = round(number * per_unit[unit])
    return max(1, steps) if number > 0 else 0

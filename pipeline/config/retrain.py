"""A run that repeats by itself: when new data makes it due, when its result may replace the champion.

    RetrainSettings
    ├── data     what counts as new, and how much of it makes a run due
    ├── budget   device hours that rounds may take
    ├── gate     what a challenger must show against the champion
    └── notify   who is told what

Nothing here changes what a run computes, so nothing here is part of a job's digest.
"""

from __future__ import annotations

import re
import zoneinfo
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.base import Settings

Occasion = Literal[
    "started", "skipped", "failed", "rejected", "inconclusive", "waiting", "promoted", "rolled_back",
    "stale", "lease_taken",
]  # fmt: skip

_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
# No N/STEP, which cron refuses and others read as from N on.
_ITEM = re.compile(r"^(?:\d+|(\*|\d+-\d+)(?:/0*[1-9]\d*)?)$")


def _check_schedule(value: str) -> str:
    fields = value.split()
    if len(fields) != len(_RANGES):
        raise ValueError(f"{len(fields)} fields; expected five: minute hour day month weekday, '0 2 * * 1'")
    for text, (low, high) in zip(fields, _RANGES, strict=True):
        for item in text.split(","):
            numbers = [int(number) for number in re.findall(r"\d+", item.split("/")[0])]
            if not _ITEM.match(item) or any(not low <= number <= high for number in numbers):
                raise ValueError(
                    f"{item!r} in {value!r}; expected *, N, N-M, */STEP or N-M/STEP with {low} to {high}"
                )
            if numbers != sorted(numbers):
                raise ValueError(f"{item!r} in {value!r} is an empty range")
    _, _, day, _, weekday = fields
    if "*" not in (day, weekday) and "*" in (day[0], weekday[0]):
        # Either of the two is enough, or both must hold: cron's answer is not that of Kubernetes.
        raise ValueError(f"day {day!r} with weekday {weekday!r} in {value!r}; expected numbers in both, or *")
    return value


def _check_zone(value: str) -> str:
    if value not in zoneinfo.available_timezones():
        raise ValueError(f"{value!r} is no name of the time zone database, as Europe/Berlin")
    return value


class NewDataSettings(Settings):
    """Which data is watched, and when it makes a run due."""

    watch: str = Field(
        description="directory or URL (s3, gs, http, https) where shards (*.tar) of pretrain.dataset appear"
    )
    min_new_samples: int = Field(1, ge=1, description="in shards that no finished round has seen")
    min_new_fraction: float = Field(
        0,
        ge=0,
        description="and this share of the samples of the last finished round",
    )
    settle_s: float = Field(
        600, ge=0, description="shards that changed in these last seconds do not count yet"
    )
    max_age_days: float | None = Field(
        None, gt=0, description="a run is due without new data when the last one is older; None: never"
    )
    on_removed: Literal["ignore", "retrain", "fail"] = Field(
        "ignore", description="a shard of the last round is gone or has other bytes: nothing, due, data fault"
    )


class BudgetSettings(Settings):
    """No round begins while the rounds of the last days have taken their device hours."""

    device_hours: float = Field(gt=0, description="of all trainings of the rounds that began in these days")
    days: float = Field(30, gt=0, description="counted back from the tick")


class GateSettings(Settings):
    """What a challenger must show, on the same locked test images as the champion."""

    rule: Literal["noninferior", "superior"] = Field(
        "noninferior",
        description="noninferior: on no dataset worse by margin_pp or more; superior: better on one besides",
    )
    margin_pp: float = Field(1.0, gt=0, le=100, description="percentage points of top-1")
    confidence: float = Field(0.95, ge=0.5, lt=1, description="one-sided, of the bound and of the tests")
    floors: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="dataset → least top-1; the only rule while there is no champion"
    )
    calibration_rise: float | None = Field(
        None,
        ge=0,
        le=1,
        description="expected calibration error may be larger than the champion's by so much on no dataset;"
        " None: it may",
    )
    slowdown: float | None = Field(
        None,
        ge=1,
        description="times the champion's multiply-accumulates that one image may take; None: any number",
    )
    disjoint: bool = Field(
        True,
        description="fail where an image of a test split lies among the new training images, byte for byte",
    )
    approve: Literal["auto", "manual"] = Field(
        "auto", description="manual: a pass waits as alias challenger for `vitline promote`"
    )


class NotifySettings(Settings):
    """One receiver: a webhook or a command. A receiver that fails never changes what was decided."""

    url_env: str | None = Field(
        None, pattern=r"^[A-Z_][A-Z0-9_]*$", description="variable with the URL: https, or loopback"
    )
    key_env: str | None = Field(
        None, pattern=r"^[A-Z_][A-Z0-9_]*$", description="variable with the key of the HMAC signature"
    )
    format: Literal["json", "slack"] = "json"
    command: tuple[str, ...] = Field((), description="program and arguments; gets the JSON on stdin")
    on: tuple[Occasion, ...] = Field(
        ("failed", "rejected", "inconclusive", "waiting", "promoted", "rolled_back", "stale", "lease_taken"),
        min_length=1,
        description="started, skipped, failed, rejected, inconclusive, waiting, promoted, rolled_back, stale"
        " (nothing promoted within twice max_age_days), lease_taken (a tick before had died)",
    )

    @model_validator(mode="after")
    def _one_way(self) -> NotifySettings:
        if (self.url_env is None) == (not self.command):
            raise ValueError("exactly one of url_env and command")
        if self.command and (self.key_env is not None or self.format != "json"):
            raise ValueError("key_env and format have no effect on a command")
        return self


class RetrainSettings(Settings):
    """What `vitline retrain` does at a tick."""

    schedule: Annotated[str, AfterValidator(_check_schedule)] = Field(
        "0 2 * * *", description="of ticks, five fields as in cron; `vitline schedule render` writes it out"
    )
    timezone: Annotated[str, AfterValidator(_check_zone)] = Field("UTC", description="of the schedule")
    start: Literal["champion", "scratch"] = Field(
        "scratch", description="weights from which the pre-training begins; without a champion: scratch"
    )
    data: NewDataSettings
    overlap: Literal["skip", "queue", "replace"] = Field(
        "skip",
        description="data that makes a run due while one goes on: skip: the next tick after it judges anew;"
        " queue: it runs next whatever the minimum says; replace: the present run is stopped for it",
    )
    attempts: int = Field(3, ge=1, description="starts of one run before it counts as failed")
    cooldown_h: float = Field(0, ge=0, description="after a failed round none begins for so many hours")
    budget: BudgetSettings | None = Field(None, description="None: rounds take what they take")
    poll_s: float = Field(30, gt=0, description="between looks with --wait")
    model: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][\w.-]*$", description="registered model; None: the run's name"
    )
    gate: GateSettings = GateSettings()
    notify: tuple[NotifySettings, ...] = ()
    ping_env: str | None = Field(
        None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description="variable with a URL that each tick calls when it has ended in order: silence means that"
        " no tick runs, or that all fail",
    )

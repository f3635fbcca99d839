"""The tables of what trainings used: compute, time, attempts."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from pipeline.report.gather import Facts, JobCard
from pipeline.report.sheet import Line, Sheet, grouped
from pipeline.report.tables import cost_text
from pipeline.report.words import clean, count, device_hours, duration, exaflops, percent, quantity
from pipeline.transfer.cells import TRAINING_STAGES
from pipeline.transfer.results import Comparison


def costs(comparison: Comparison) -> Sheet:
    """Compute behind each row, by stage."""
    rows = []
    for row in comparison.rows:
        parts = [row.cost_by_stage.get(stage) for stage in TRAINING_STAGES]
        shown = [
            "–"
            if part is None
            else exaflops(part.exaflops)
            if part.exaflops
            else quantity(part.images, "images")
            for part in parts
        ]
        cells = (
            percent(row.top1),
            *shown,
            cost_text(row),
            quantity(row.cost.images, ""),
            device_hours(row.cost),
        )
        rows.append((clean(row.dataset), clean(row.label), *cells))
    heads = (
        "dataset",
        "model",
        "top-1",
        "pre-training",
        "choosing",
        "fine-tuning",
        "in all",
        "images",
        "device hours",
    )
    return grouped(heads, rows, (0, 1))


def trainings(cards: Sequence[JobCard]) -> Sheet:
    """Final numbers of trainings."""
    lines = []
    for card in cards:
        curve = card.curve
        assert curve is not None, f"{card.name} is no training"
        lines.append(
            Line(
                [
                    clean(card.name, 64),
                    count(curve.steps[-1]) if curve.steps else "–",
                    f"{curve.losses[-1]:.3f}" if curve.losses else "–",
                    percent(curve.validations[-1][1]) if curve.validations else "–",
                    quantity(curve.rate, "images/s") if curve.rate else "–",
                    duration(card.seconds),
                    str(card.attempts),
                ]
            )
        )
    return Sheet(("job", "steps", "last loss", "validation top-1", "speed", "time", "attempts"), lines)


def stages(facts: Facts) -> Sheet:
    """Jobs, time and restarts of each stage."""
    lines = []
    for stage in dict.fromkeys(job.stage for job in facts.jobs):
        cards = facts.jobs_of(stage)
        curves = [card.curve for card in cards if card.curve is not None]
        lines.append(
            Line(
                [
                    stage,
                    count(len(cards)),
                    duration(sum(card.seconds for card in cards)),
                    duration(max(card.seconds for card in cards)),
                    count(sum(card.attempts - 1 for card in cards)),
                    count(sum(curve.skipped for curve in curves)) if curves else "–",
                ]
            )
        )
    return Sheet(("stage", "jobs", "time, summed", "longest", "restarts", "skipped steps"), lines)


def attempts(card: JobCard) -> Sheet:
    """What each attempt of the pre-training ran on."""
    starts = card.curve.starts if card.curve else ()
    lines = [
        Line(
            [
                str(start.get("attempt", place)),
                _time(start.get("time")),
                str(start.get("step", 0)),
                *(
                    clean(start.get(key, "–"))
                    for key in ("world", "batch", "micro_batch", "precision", "engine")
                ),
            ]
        )
        for place, start in enumerate(starts, 1)
    ]
    heads = ("attempt", "started (UTC)", "from step", "ranks", "batch", "micro-batch", "precision", "engine")
    return Sheet(heads, lines, (0, 1))


def _time(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return datetime.datetime.fromtimestamp(value, datetime.UTC).strftime("%Y-%m-%d %H:%M")

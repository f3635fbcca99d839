"""Everything that the report shows, read from the run directory into plain values.

digests by job name ─► cells ─► Comparison
                    ─► curves, chosen rates, data cards, job cards, openings of test splits
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.events import read_events
from pipeline.report.contact import Prepared, contact_sheets, left_out_pictures
from pipeline.report.curves import Curve, read_curve
from pipeline.report.hardest import hardest
from pipeline.report.left_out import LeftOut, read_left_out
from pipeline.report.looked import Looked, look
from pipeline.report.parts import Gallery
from pipeline.report.reliability import Reliability, read_reliability
from pipeline.report.timeline import Timeline, read_timeline
from pipeline.rundir import RunDir, read_json
from pipeline.transfer.cells import TRAINING_STAGES, Cell
from pipeline.transfer.results import Comparison, collect, compare

JobKey = tuple[str, str]  # dataset, start


@dataclass(frozen=True)
class DataCard:
    """One prepared dataset; `samples` and `fingerprints` by split."""

    name: str
    source: str
    classes: int
    samples: dict[str, int]
    fingerprints: dict[str, str]
    unreadable: int
    openings: int


@dataclass(frozen=True)
class JobCard:
    """One job that is done; `attempts` counts restarts and resumes too."""

    name: str
    stage: str
    digest: str
    seconds: float
    finished: float
    attempts: int
    curve: Curve | None
    metrics: dict[str, float]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One learning rate that was tried on the held-out part of train."""

    rate: float
    top1: float
    loss: float


@dataclass(frozen=True)
class Facts:
    """All of one report."""

    name: str
    version: str
    commit: str
    finished: float
    config: Mapping[str, Any]
    comparison: Comparison
    cells: list[Cell]
    jobs: list[JobCard]
    data: list[DataCard]
    choices: dict[JobKey, list[Choice]]
    reliability: dict[tuple[str, str], Reliability]  # dataset, label
    looked: Looked | None  # None: the pre-training left no weights
    left_out: list[LeftOut]
    left_out_pictures: list[Gallery]
    contact: list[Gallery]
    hardest: list[Gallery]
    timeline: Timeline

    @property
    def shows_images(self) -> bool:
        return shows_images(self.config)

    def jobs_of(self, stage: str) -> list[JobCard]:
        return [job for job in self.jobs if job.stage == stage]


def shows_images(config: Mapping[str, Any]) -> bool:
    """Whether the page may hold images of the datasets; in runs of before this setting it did."""
    return bool(config.get("report", {}).get("images", True))


def gather(run: RunDir, config: Mapping[str, Any], digests: Mapping[str, str]) -> Facts:
    """Read what the finished jobs among `digests` (name → digest) left behind, in that order.

    Raises:
        UserError: nothing was evaluated, or results that must not be compared.
        DataError: predictions that cannot be used.
    """
    cells = collect(run, list(digests.values()))
    comparison = compare(cells, groups=config["transfer"]["protocol"].get("groups"))
    jobs = [card for digest in digests.values() if (card := _job_card(run, digest)) is not None]
    prepared = [
        Prepared(job.name.removeprefix("prepare/"), job.digest) for job in jobs if job.stage == "prepare"
    ]
    pretrain = digests.get("pretrain")
    images = shows_images(config)
    events, _ = read_events(run.events)
    started = [event for event in events if event.get("event") == "run" and event.get("state") == "started"]
    last = started[-1] if started else {}
    return Facts(
        name=str(config["name"]),
        version=str(last.get("version") or ""),
        commit=str(last.get("commit") or ""),
        # The time of the newest result, not of this page: the same results give the same bytes.
        finished=max(job.finished for job in jobs if job.stage == "evaluate"),
        config=config,
        comparison=comparison,
        cells=cells,
        jobs=jobs,
        data=_data_cards(run, jobs, config),
        choices=_choices(jobs),
        reliability=read_reliability(run, cells),
        looked=look(run, pretrain) if pretrain else None,
        left_out=read_left_out(run, pretrain),
        left_out_pictures=left_out_pictures(run, prepared, pretrain) if images and pretrain else [],
        contact=contact_sheets(run, prepared) if images else [],
        hardest=hardest(run, cells) if images else [],
        timeline=read_timeline(run, list(digests.values())),
    )


def _job_card(run: RunDir, digest: str) -> JobCard | None:
    job, result = read_json(run.job(digest).job), run.job(digest).read_result()
    if job is None or result is None or job["stage"] == "compare":
        return None
    trains = job["stage"] in TRAINING_STAGES
    return JobCard(
        name=job["name"],
        stage=job["stage"],
        digest=digest,
        seconds=float(result["seconds"]),
        finished=float(result["finished"]),
        attempts=max(1, run.job(digest).read_generation()),
        curve=read_curve(run.job(digest).events) if trains else None,
        metrics=dict(result["metrics"]),
        settings={**job["slice"], "outputs": result["outputs"]},
    )


def _data_cards(run: RunDir, jobs: list[JobCard], config: Mapping[str, Any]) -> list[DataCard]:
    openings, _ = read_events(run.openings)
    cards = []
    for job in jobs:
        if job.stage != "prepare":
            continue
        name, outputs = job.name.removeprefix("prepare/"), job.settings["outputs"]
        prints = {str(split): str(value) for split, value in outputs.get("fingerprints", {}).items()}
        opened = sum(event.get("dataset") == prints.get("test", "") for event in openings)
        cards.append(
            DataCard(
                name=name,
                source=str(config.get("datasets", {}).get(name, {}).get("source", "")),
                classes=int(outputs.get("classes", 0)),
                samples={
                    key.removeprefix("data/").removesuffix("_samples"): int(value)
                    for key, value in job.metrics.items()
                    if key.startswith("data/") and key.endswith("_samples")
                },
                fingerprints=prints,
                unreadable=int(outputs.get("unreadable", 0)),
                openings=opened,
            )
        )
    return cards


def _choices(jobs: list[JobCard]) -> dict[JobKey, list[Choice]]:
    """What was tried for each dataset and start, by rate."""
    tried: dict[JobKey, list[Choice]] = {}
    for job in jobs:
        if job.stage == "choose":
            key = str(job.settings["dataset"]), str(job.settings["start"])
            rate = float(job.settings["learning_rate"])
            tried.setdefault(key, []).append(Choice(rate, job.metrics["val/top1"], job.metrics["val/loss"]))
    return {key: sorted(choices, key=lambda choice: choice.rate) for key, choices in tried.items()}

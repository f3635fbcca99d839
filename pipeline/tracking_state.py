"""What of a run's events is to be mirrored, and how far that has come: no MLflow, no network.

    events.jsonl of the driver ──► Cursor.apply: which jobs there are and how they stand
    events.jsonl of a job      ──► points: metrics with their own steps and times
    job.json, result.json      ──► job_params, job_tags, result_points, fingerprints

A `Cursor` is saved as RUN/tracking.json. Sending again what was sent already does no harm (MLflow keeps
equal points once), so the cursor may lag behind the store, but never runs ahead of it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config_io import flatten
from pipeline.events import Event
from pipeline.rundir import RunDir, read_json, write_json

# MLflow's pages slow down at about 10,000 points a run; every step stays in the job's own log.
MOST_POINTS = 1500
MOST_PARAMS = 60
LONGEST_PARAM = 500
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-. /:]")

# Fields of a job's events → metric names; docs/metrics.md says what each means.
_FIELDS = {
    "progress": {
        "loss": "train/loss",
        "masked_accuracy": "train/masked_accuracy",
        "grad_norm": "train/grad_norm",
        "lr": "train/lr",
        "images_per_s": "train/images_per_s",
        "images_per_s_device": "train/images_per_s_device",
        "mfu": "train/mfu",
        "data_wait_s": "train/data_wait_s",
        "communication": "train/communication",
        "update_ratio": "train/update_ratio",
        "eta_s": "train/time_left_s",
        "epoch": "train/epoch",
        "skipped": "train/skipped_steps",
        "overflows": "train/overflowed_steps",
        "loss_scale": "train/loss_scale",
        "memory_mib": "train/memory_mib",
        "position": "cost/images_seen",
    },
    "validate": {
        "top1": "val/top1",
        "masked_accuracy": "val/masked_accuracy",
        "loss": "val/loss",
        "knn_top1": "val/knn_top1",
    },
    "checkpoint": {"stall_s": "train/checkpoint_stall_s"},
}
# State of a job or run that has ended → MLflow's status.
STATUS = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}


@dataclass(frozen=True)
class Point:
    """One value of a metric; `time_ms` since 1970."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass
class Tracked:
    """One MLflow run: what it should be, and what has been sent of it.

    Args:
        state: running, done, failed or stopped, by the driver's events; since `time`.
        run_id: "" before it was created. status: MLflow's, as sent last.
        offset: bytes of the job's event log that were sent.
        last: metric → last step sent, so that steps redone after a resume are not doubled.
        stride: least distance in steps of two points; steps: of the whole training.
        sent: kind of thing → what was sent, or its digest.
        fault: why no more is sent; "" while all is well.
        replaced: run of an earlier result of the same job, when that was thrown away and made again.
    """

    name: str = ""
    stage: str = ""
    state: str = ""
    started: float = 0.0
    time: float = 0.0
    run_id: str = ""
    status: str = ""
    offset: int = 0
    last: dict[str, int] = field(default_factory=dict)
    stride: int = 1
    steps: int = 0
    sent: dict[str, str] = field(default_factory=dict)
    fault: str = ""
    replaced: str = ""

    @property
    def end(self) -> str:
        """Names the end that was reached; differs when a job is run again."""
        return f"{self.state} {self.time}"

    @property
    def is_settled(self) -> bool:
        return bool(self.fault) or (self.state in STATUS and self.sent.get("end") == self.end)


@dataclass
class Cursor:
    """How far a run has been mirrored into one store.

    Args:
        store: the store's address; a cursor of another store is not used.
        key: random name of the parent run, kept before the run is created, so that a create call whose
            answer was lost is found again.
        experiment: its id in the store, for links; "" before it is known.
        uncertain: when a create call last failed, Unix seconds; it may have worked all the same.
    """

    store: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    offset: int = 0
    commands: int = 0
    version: str = ""
    commit: str = ""
    experiment: str = ""
    uncertain: float = 0.0
    parent: Tracked = field(default_factory=Tracked)
    jobs: dict[str, Tracked] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, store: str) -> Cursor:
        """The cursor in `path`; a new one when there is none that can be used for `store`."""
        try:
            saved = read_json(path)
        except ValueError:
            saved = None
        if saved is None or saved.pop("schema", None) != 1 or saved["store"] != store:
            return cls(store)
        jobs = {digest: Tracked(**job) for digest, job in saved.pop("jobs").items()}
        return cls(**{**saved, "parent": Tracked(**saved["parent"]), "jobs": jobs})

    def save(self, path: Path) -> None:
        write_json(path, {"schema": 1, **asdict(self)})

    def apply(self, event: Event) -> None:
        """Take over one event of the driver."""
        if event.get("event") == "run":
            self._apply_run(event)
        elif event.get("event") == "job" and event["state"] in ("running", *STATUS):
            job = self.jobs.setdefault(event["digest"], Tracked(event["name"], event["stage"]))
            if event["state"] == "running" and job.state == "done":
                # Only a result that was thrown away is made again; its run and its log are another's.
                job = self.jobs[event["digest"]] = Tracked(
                    event["name"], event["stage"], replaced=job.run_id or job.replaced
                )
            job.started = job.started or event["time"]
            job.state, job.time, job.fault = event["state"], event["time"], ""

    def _apply_run(self, event: Event) -> None:
        parent = self.parent
        if event["state"] == "started":
            self.commands += 1
            self.version = str(event.get("version") or "")
            self.commit = str(event.get("commit") or "")
        parent.started = parent.started or event["time"]
        state = str(event["state"])
        parent.state = {"started": "running", "finished": "done"}.get(state, state)
        parent.time = event["time"]
        # Jobs do not outlive the driver that started them, even one that was killed and said nothing.
        for job in self.jobs.values():
            if job.state == "running":
                job.state, job.time = "stopped", event["time"]


def points(events: Iterable[Event], job: Tracked) -> list[Point]:
    """Metrics in `events`, thinned to about MOST_POINTS a training; moves `job.last` on."""
    found = []
    for event in events:
        kind, time_ms = str(event.get("event")), round(1000 * event.get("time", 0))
        if kind == "start":
            job.steps = int(event.get("steps", 0))
            job.stride = max(1, job.steps // MOST_POINTS)
        step = int(event.get("step", 0))
        stride = job.stride if kind == "progress" and step != job.steps else 1
        shots = {name: f"val/{name}" for name in event if kind == "validate" and name.startswith("few_shot_")}
        for name, key in (_FIELDS.get(kind, {}) | shots).items():
            value = event.get(name)
            if isinstance(value, int | float) and step - job.last.get(key, -stride) >= stride:
                job.last[key] = step
                found.append(Point(key, float(value), time_ms, step))
    return found


def result_points(result: Mapping[str, Any], job: Tracked) -> list[Point]:
    """The final numbers of a job, at its last step, but for those that its events gave already."""
    step = int(result["outputs"].get("steps", 0))
    found = []
    for name, value in result["metrics"].items():
        key = clean_name(name)
        if isinstance(value, int | float) and step > job.last.get(key, -1):
            job.last[key] = step
            found.append(Point(key, float(value), round(1000 * result["finished"]), step))
    return found


def report_points(summary: Mapping[str, Any], time: float) -> list[Point]:
    """The comparison's numbers (report/results.json), for the parent run: few names, one value each."""
    time_ms = round(1000 * time)
    rows = {f"top1/{row['dataset']}/{row['label']}": row["top1"] for row in summary.get("rows", [])}
    pairs = {
        f"delta_pp/{pair['dataset']}/{pair['challenger']}": pair["delta_pp"]
        for pair in summary.get("pairs", [])
    }
    return [Point(clean_name(name), value, time_ms, 0) for name, value in {**rows, **pairs}.items()]


def clean_name(name: str) -> str:
    """`name` with the characters that MLflow refuses in names replaced."""
    return _NOT_IN_NAMES.sub("_", name)[:250]


def params(settings: Mapping[str, Any], **first: object) -> dict[str, str]:
    """At most MOST_PARAMS dotted leaves, `first` ones first, each cut to LONGEST_PARAM characters."""
    leaves = {**first, **dict(flatten(settings))}
    texts = {clean_name(key): _text(value) for key, value in leaves.items() if value is not None}
    return dict(list(texts.items())[:MOST_PARAMS])


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"


def job_params(job: Mapping[str, Any], config_digest: str) -> dict[str, str]:
    """Parameters of a job's run from its job.json: its slice, and the learning rate chosen for it."""
    optimizer = (job.get("work") or {}).get("settings", {}).get("optimizer", {})
    chosen = {"learning_rate": optimizer["learning_rate"]} if "learning_rate" in optimizer else {}
    return params(job.get("slice") or {}, digest=job.get("digest"), config_digest=config_digest, **chosen)


def job_tags(job: Mapping[str, Any], digest: str, run_name: str, attempt: int) -> dict[str, str]:
    """Tags of a job's run; MLflow's search finds runs by them."""
    settings = job.get("slice") or {}
    named = {key: settings.get(key) for key in ("dataset", "start", "seed", "protocol")}
    if isinstance(named["protocol"], Mapping):
        named["protocol"] = named["protocol"].get("name")
    tags = {"job": digest, "run": run_name, "stage": job.get("stage"), "attempt": attempt, **named}
    return {
        f"vitline.{key}": str(value)
        for key, value in tags.items()
        if value is not None and not isinstance(value, Mapping)
    }


def fingerprints(run: RunDir, digest: str) -> list[tuple[str, str, str]]:
    """(dataset, fingerprint, context) of the data that a finished job made or read."""
    job, result = read_json(run.job(digest).job), run.job(digest).read_result()
    if job is None or result is None:
        return []
    outputs = result["outputs"]
    if job["stage"] == "prepare":
        name = job["name"].removeprefix("prepare/")
        return [(name, value, split) for split, value in sorted(outputs.get("fingerprints", {}).items())]
    source = read_json(run.job(job.get("inputs", {}).get("data", "")).job) or {}
    name = source.get("name", "data").removeprefix("prepare/")
    found = {split: outputs.get(f"{split}_fingerprint") for split in ("train", "test")}
    return [(name, value, split) for split, value in found.items() if value]

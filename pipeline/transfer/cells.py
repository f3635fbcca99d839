"""The cells of a run's result: one fine-tuned model on one locked test split, image by image.

    evaluate job ──inputs["model"]──► finetune job ──► choose jobs, pretrain job
                                      (of a probe: the pretrain job, or none)
    predictions, n, fingerprint       learning rate    what it all cost

Reads only files of the run directory; knows neither the models nor the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config_io import digest_of
from pipeline.errors import DataError
from pipeline.rundir import RunDir, read_json

TRAINING_STAGES = ("pretrain", "choose", "finetune")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What trainings used, summed over jobs; device hours are NaN where a job did not count them."""

    images: float = 0.0
    exaflops: float = 0.0
    seconds: float = 0.0
    device_hours: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            images=self.images + other.images,
            exaflops=self.exaflops + other.exaflops,
            seconds=self.seconds + other.seconds,
            device_hours=self.device_hours + other.device_hours,
        )


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a model was pre-trained as, and on.

    Args:
        model: the network and its options. data: names of the datasets.
        images: of their train splits together; None where a job that prepared one is not there any more.
    """

    model: str
    data: tuple[str, ...]
    images: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One model on one test split.

    Args:
        label: what it is compared as; the start, or the run when runs are compared.
        protocol: its name. protocol_settings: all of it, so that two of one name are told apart.
        n: test images. top1: share of them that is right.
        ids: int64 (n,), sorted. correct: bool (n,), in the order of `ids`; so are labels and
            predictions, int32 (n,).
        learning_rate: the one chosen on held-out training data; None when the job does not say.
        cost: stage → cost of all jobs of that stage behind this cell, pre-training included.
        pretraining: None of a model that was not pre-trained.
    """

    digest: str
    dataset: str
    label: str
    start: str
    seed: int
    protocol: str
    protocol_settings: Mapping[str, Any]
    n: int
    top1: float
    ids: NDArray[np.int64]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int32]
    predictions: NDArray[np.int32]
    classes: tuple[str, ...]
    test_fingerprint: str
    learning_rate: float | None
    cost: Mapping[str, Cost]
    pretraining: Pretraining | None = None

    @property
    def total_cost(self) -> Cost:
        return sum(self.cost.values(), Cost())

    @property
    def protocol_digest(self) -> str:
        return digest_of([self.protocol, self.protocol_settings])


def collect(run: RunDir, digests: Sequence[str]) -> list[Cell]:
    """Cells of the finished evaluate jobs among `digests`, in their order.

    Jobs of other stages, and those not done, are passed over.

    Raises:
        DataError: a result whose predictions are missing or do not agree with it.
    """
    jobs = {digest: _read_job(run, digest) for digest in digests}
    return [
        _read_cell(run, digest, job, result)
        for digest, job in jobs.items()
        if job.get("stage") == "evaluate" and (result := run.job(digest).read_result()) is not None
    ]


def _read_job(run: RunDir, digest: str) -> dict[str, Any]:
    return read_json(run.job(digest).job) or {}


def _read_cell(run: RunDir, digest: str, job: Mapping[str, Any], result: Mapping[str, Any]) -> Cell:
    settings, outputs = job["slice"], result["outputs"]
    model = _read_job(run, job["inputs"].get("model", ""))
    # A probe is of the pre-training itself: what that was trained with is not part of the protocol.
    tuned = model if model.get("stage") == "finetune" else {}
    table = _read_predictions(run, digest, result)
    work = tuned.get("work") or {}
    return Cell(
        digest=digest,
        dataset=settings["dataset"],
        label=settings["start"],
        start=settings["start"],
        seed=settings["seed"],
        protocol=settings["protocol"],
        protocol_settings=_protocol_settings(settings, tuned.get("slice") or {}),
        n=len(table["ids"]),
        top1=float(np.mean(table["correct"])),
        classes=tuple(str(name) for name in outputs.get("classes") or ()),
        test_fingerprint=outputs["test_fingerprint"],
        learning_rate=work.get("settings", {}).get("optimizer", {}).get("learning_rate"),
        cost=_costs(run, digest),
        pretraining=_pretraining(run, digest),
        **table,
    )


def _read_predictions(run: RunDir, digest: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of predictions.parquet sorted by id, checked against the result's own numbers."""
    path = run.path / result["outputs"].get("predictions", f"jobs/{digest}/predictions.parquet")
    again = f"remove jobs/{digest}/result.json; the same command evaluates again"
    columns = ["id", "label", "prediction", "correct"]
    try:
        table = pq.read_table(path, columns=columns)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        reason = str(error).splitlines()[0]
        raise DataError(
            f"predictions of {result['name']} cannot be read: {reason}",
            f"a Parquet file with {', '.join(columns)}",
            again,
        ) from None
    arrays = {name: table[name].to_numpy() for name in columns}
    order = np.argsort(arrays["id"], kind="stable")
    n, top1 = result["metrics"]["eval/n"], result["metrics"]["eval/top1"]
    found = float(np.mean(arrays["correct"])) if len(order) else 0.0
    if len(order) == 0 or len(order) != n or abs(found - top1) > 1e-6:
        raise DataError(
            f"{len(order)} predictions of {result['name']}, {found:.4f} of them right",
            f"the {n:g} and {top1:.4f} of its result.json",
            again,
        )
    return {
        "ids": arrays["id"][order].astype(np.int64),
        "correct": arrays["correct"][order].astype(np.bool_),
        "labels": arrays["label"][order].astype(np.int32),
        "predictions": arrays["prediction"][order].astype(np.int32),
    }


def _protocol_settings(evaluate: Mapping[str, Any], finetune: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes two numbers comparable: how it was tuned, and how it was judged."""
    judged = {key: evaluate[key] for key in ("image_size", "evaluate", "larger") if key in evaluate}
    tuned = {key: finetune[key] for key in ("protocol", "learning_rates") if key in finetune}
    probe = {"probe": evaluate["probe"]} if "probe" in evaluate else {}
    return {"judged": judged, "tuned": tuned, **probe}


def _behind(run: RunDir, digest: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A job and all jobs that it rests on, each once: (digest, description)."""
    seen: set[str] = set()
    waiting = [digest]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        job = _read_job(run, at)
        waiting.extend(job.get("inputs", {}).values())
        yield at, job


def _pretraining(run: RunDir, digest: str) -> Pretraining | None:
    job = next((job for _, job in _behind(run, digest) if job.get("stage") == "pretrain"), None)
    if job is None:
        return None
    model = job["slice"]["model"]
    options = " ".join(f"{key}={value}" for key, value in sorted((model.get("options") or {}).items()))
    data = sorted(job["inputs"].values())
    names = [str(_read_job(run, at).get("name", at)).removeprefix("prepare/") for at in data]
    results = [run.job(at).read_result() for at in data]
    numbers = [result["metrics"].get("data/train_samples") if result else None for result in results]
    known = [int(number) for number in numbers if number is not None]
    return Pretraining(
        model=f"{model['name']} {options}".strip(),
        data=tuple(sorted(names)),
        images=sum(known) if len(known) == len(data) else None,
    )


def _costs(run: RunDir, digest: str) -> dict[str, Cost]:
    """Cost of every training behind a job, each job once, by stage."""
    costs: dict[str, Cost] = {}
    for at, job in _behind(run, digest):
        result = run.job(at).read_result()
        if job.get("stage") in TRAINING_STAGES and result is not None:
            stage, metrics = job["stage"], result["metrics"]
            costs[stage] = costs.get(stage, Cost()) + Cost(
                images=metrics.get("cost/images_seen", 0.0),
                exaflops=metrics.get("cost/exaflops", 0.0),
                seconds=metrics.get("cost/seconds", result["seconds"]),
                device_hours=metrics.get("cost/device_hours", math.nan),
            )
    return costs

"""Guards of the gate beyond accuracy: each is a name with "" where it holds, or with what is wrong.

Each is looked at only where its setting asks for it, and gives the same answer whenever it is asked: how
long an image takes is therefore counted in multiply-accumulates and not in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.config import config_from_dict
from model.flops import macs
from model.weights.files import load_weights
from pipeline.config import DataMixture, DataView, EvaluateJob, GateSettings, ProbeJob, TrainJob
from pipeline.data.view import View, open_view
from pipeline.rundir import RunDir, read_json
from pipeline.transfer.results import Cell


@dataclass(frozen=True)
class Side:
    """Challenger or champion: its run, what that gave on the transfer datasets, its weights."""

    run: RunDir
    cells: Sequence[Cell]
    weights: Path


def against_champion(new: Side, old: Side, settings: GateSettings) -> dict[str, str]:
    """Guards that compare the two."""
    guards = {}
    if settings.calibration_rise is not None:
        guards["calibration"] = _calibration(new, old, settings.calibration_rise)
    if settings.slowdown is not None:
        guards["work for an image"] = _work(new.weights, old.weights, settings.slowdown)
    return guards


def _calibration(new: Side, old: Side, rise: float) -> str:
    after, before = _errors(new.run, new.cells), _errors(old.run, old.cells)
    missing = sorted(name for name, error in {**before, **after}.items() if error is None)
    if missing:
        return f"no calibration error of {missing[0]}: its predictions have no confidence"
    worse = {name: (before[name], error) for name, error in after.items() if name in before}
    for name, (was, now) in sorted(worse.items()):
        if was is not None and now is not None and now - was > rise:
            return f"{name}: expected calibration error {now:.4f} after {was:.4f}, more than {rise:g} above"
    return ""


def _errors(run: RunDir, cells: Sequence[Cell]) -> dict[str, float | None]:
    """Dataset → expected calibration error, mean over seeds; None where one does not have it."""
    found: dict[str, list[float | None]] = {}
    for cell in cells:
        metrics = (run.job(cell.digest).read_result() or {}).get("metrics", {})
        found.setdefault(cell.dataset, []).append(metrics.get("eval/ece"))
    return {
        name: None if None in errors else float(np.mean([error for error in errors if error is not None]))
        for name, errors in found.items()
    }


def _work(new: Path, old: Path, allowed: float) -> str:
    after, before = (macs(config_from_dict(load_weights(file)[1])) for file in (new, old))
    if after <= allowed * before:
        return ""
    return f"{after / before:.3g} times the multiply-accumulates of the champion's, {allowed:g} are allowed"


# ---------------------------------------------------------------- the same image in training and test


def leaks(run: RunDir, cells: Sequence[Cell], pretraining: str) -> dict[str, str]:
    """Whether a test image of the cells lies among the images of the pre-training, byte for byte.

    Args:
        pretraining: digest of the run's job.

    Raises:
        DataError: prepared data that is no longer there, or damaged.
    """
    job = read_json(run.job(pretraining).job) or {}
    data = TrainJob.model_validate(job["work"]).data
    tests = dict.fromkeys((cell.dataset, _test_view(run, cell.digest)) for cell in cells)
    known: dict[tuple[int, bytes], str] = {}
    for dataset, part in tests:
        with closing(open_view(part, run.path)) as view:
            for shard, row, size in _images(view):
                known.setdefault((size, _hash(view, shard, row)), dataset)
    sizes = {size for size, _ in known}
    found: list[tuple[str, str]] = []
    for part in data.parts if isinstance(data, DataMixture) else (data,):
        with closing(open_view(part, run.path)) as view:
            for shard, row, size in _images(view):
                # Few images have just as many bytes as one of the others: only those are read.
                same = known.get((size, _hash(view, shard, row))) if size in sizes else None
                if same is not None:
                    found.append((view.store.rows.index(shard).key(row), same))
    name = "test images are not trained on"
    return {name: f"{len(found)} are, as {found[0][0]}, which {found[0][1]} tests on" if found else ""}


def _test_view(run: RunDir, digest: str) -> DataView:
    work = (read_json(run.job(digest).job) or {})["work"]
    if work["kind"] == "probe":
        return ProbeJob.model_validate(work).data
    return EvaluateJob.model_validate(work).data


def _images(view: View) -> Iterator[tuple[int, int, int]]:
    """Shard, row in it and bytes of each image of the view, a shard's index in memory at a time."""
    first = 0
    for shard in range(view.num_shards):
        size = view.store.rows.index(shard).size
        ids = np.arange(first, first + len(size), dtype=np.int64)
        chosen = np.ones(len(size), bool) if view.ids is None else np.isin(ids, view.ids, assume_unique=True)
        for row in np.flatnonzero(chosen).tolist():
            yield shard, row, int(size[row])
        first += len(size)


def _hash(view: View, shard: int, row: int) -> bytes:
    return hashlib.sha256(view.read_row(shard, row)).digest()

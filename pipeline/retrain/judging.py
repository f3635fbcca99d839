"""From a run that has ended to a verdict: challenger and champion on the same images, and the evidence.

Both sides are read from the runs' own records (what their last comparison read), so that nothing that has
changed since, as shards or settings, changes what is compared.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model.weights.files import load_weights
from pipeline.config import GateSettings
from pipeline.errors import DataError
from pipeline.retrain.gate import Judgement, judge
from pipeline.retrain.guards import Side, against_champion, leaks
from pipeline.retrain.state import Round, State
from pipeline.rundir import RunDir, read_json
from pipeline.stages import compare, pretrain
from pipeline.tracking_registry import Registry
from pipeline.transfer.results import Cell, collect

READABLE = "weights can be read"


def judge_round(now: Round, state: State, registry: Registry, settings: GateSettings) -> Judgement:
    """The verdict over a round whose run has ended.

    Raises:
        DataError: results of either side that cannot be read.
    """
    run = state.run_dir(now.run)
    guards = examine_weights(weights_of(run))
    cells = cells_of(run)
    if settings.disjoint:
        guards |= leaks(run, cells, _compared(run)[pretrain.STAGE])
    if now.champion is None:
        return judge(cells, None, settings, guards)
    there = champion_run(now, state, registry)
    if there is None:
        why = f"the predictions of the champion, version {now.champion}, are no longer in {state.runs}"
        return Judgement(verdict="inconclusive", why=why, needed=None, datasets=(), guards=guards)
    old = Side(there, cells_of(there), weights_of(there))
    if not guards[READABLE]:
        guards |= against_champion(Side(run, cells, weights_of(run)), old, settings)
    return judge(cells, old.cells, settings, guards)


def champion_run(now: Round, state: State, registry: Registry) -> RunDir | None:
    """The run with the champion's results: the one that evaluated it anew for this round, or its own.

    None: there is no champion, or its run is gone.
    """
    if now.champion is None:
        return None
    name = now.again or registry.version(now.champion).tags.get("run", "")
    run = state.run_dir(name)
    return run if name and run.jobs.is_dir() else None


def evidence(
    now: Round, judgement: Judgement, settings: GateSettings, model: str, fence: int, time: float
) -> dict[str, Any]:
    """gate.json: the verdict with all that it rests on."""
    return {
        "schema": 1,
        **asdict(judgement),
        "rule": settings.rule,
        "margin_pp": settings.margin_pp,
        "confidence": settings.confidence,
        "floors": settings.floors,
        "model": model,
        "champion": now.champion,
        "champion_run": now.again or "",
        "champion_not_evaluated_anew": now.again_why,
        "key": now.key,
        "run": now.run,
        "data": now.data,
        "samples": now.samples,
        "fence": fence,
        "time": time,
    }


def cells_of(run: RunDir) -> list[Cell]:
    """What the run's pre-training gave on the transfer datasets."""
    return [cell for cell in collect(run, list(_compared(run).values())) if cell.start == "pretrained"]


def weights_of(run: RunDir) -> Path:
    """The exported weights of the run's pre-training."""
    return run.job(_compared(run)[pretrain.STAGE]).weights


def _compared(run: RunDir) -> dict[str, str]:
    """Role → digest of what the run's last finished comparison read."""
    found = []
    for file in run.jobs.glob("*/job.json"):
        job = read_json(file)
        result = run.job(file.parent.name).read_result()
        if job is not None and result is not None and job["stage"] == compare.STAGE:
            found.append((float(result["finished"]), dict(job["inputs"])))
    if not found:
        raise DataError(
            f"{run.path} holds no finished comparison",
            "a run that ended well",
            "remove its round.json; the next tick begins anew",
        )
    return max(found, key=lambda item: item[0])[1]


def examine_weights(file: Path) -> dict[str, str]:
    """Guards of the gate: name → "" or what is wrong with the weights."""
    try:
        state, _, _ = load_weights(file)
    except (ValueError, FileNotFoundError) as error:
        return {READABLE: str(error)}
    bad = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in state.values()))
    return {
        READABLE: "",
        "weights are finite": f"{bad[0]} is not" if bad else "",
        "weights are not all zero": "" if norm > 0 else "all are zero",
    }

"""The champion on the present test splits: evaluated there when it was judged on others, or otherwise.

Two numbers of different images or protocols are never compared. So where the settings of the transfer have
changed since the champion's round, a run of its own evaluates it anew before the gate looks: the champion's
pre-training, linked, with the transfer of the challenger's run.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config import RunConfig
from pipeline.config_io import load_config
from pipeline.errors import UserError
from pipeline.graph import plan
from pipeline.retrain.judging import cells_of, champion_run
from pipeline.retrain.rounds import reuse
from pipeline.retrain.state import Round, State
from pipeline.stages import pretrain
from pipeline.stages.catalog import all_jobs
from pipeline.tracking_registry import Registry
from pipeline.transfer.results import Cell


def differing(challenger: Sequence[Cell], champion: Sequence[Cell]) -> list[str]:
    """Datasets on which the two were not judged by one protocol on the same images."""
    before = {cell.dataset: _judged(cell) for cell in champion}
    return sorted({cell.dataset for cell in challenger if before.get(cell.dataset) != _judged(cell)})


def _judged(cell: Cell) -> tuple[str, str, bytes]:
    return cell.test_fingerprint, cell.protocol_digest, cell.ids.tobytes()


def needed(now: Round, state: State, registry: Registry) -> bool:
    """Whether the champion has to be evaluated anew before the gate.

    Raises:
        DataError: results of either side that cannot be read.
    """
    seated = champion_run(now, state, registry)
    return seated is not None and bool(differing(cells_of(state.run_dir(now.run)), cells_of(seated)))


def prepare(now: Round, state: State, registry: Registry) -> RunConfig | str:
    """The run that evaluates the champion as the challenger was, its pre-training linked; or why not."""
    seated = champion_run(now, state, registry)
    assert seated is not None, "asked for after `needed`"
    try:
        new, old = load_config(state.run_dir(now.run).config), load_config(seated.config)
    except UserError as error:
        return f"its settings cannot be read any more: {error.found}"
    if both := sorted(old.pretrain.shares.keys() & set(new.transfer.datasets)):
        return f"{both[0]} is pre-trained on and tested on"
    trained = {name: old.datasets[name] for name in old.pretrain.shares}
    config = new.model_copy(
        update={
            "name": now.champion_run,
            "pretrain": old.pretrain,
            "datasets": {**new.datasets, **trained},
        }
    )
    reuse(config, state, state.rounds(), also=now.run)
    run = state.run_dir(config.name)
    for item in plan(all_jobs(config), lambda digest: run.job(digest).result.exists(), {}):
        if item.job.stage == pretrain.STAGE and item.state != "done":
            return "its pre-training is not what it would be today: its shards or the code have changed"
    return config

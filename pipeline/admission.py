"""Which of the due jobs may start now: arithmetic over what runs and what the cluster has.

Ray would queue everything by itself, but not in our order: a gang that waits for its place must hold back
the small jobs, which else would never let it in, and the longest job goes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from pipeline.errors import EnvironmentUnfit
from pipeline.graph import Planned
from pipeline.stages import compare, prepare
from pipeline.stages.catalog import STAGES

_KINDS = ("CPU", "GPU")


def needs(item: Planned) -> dict[str, float]:
    """What a job takes of the cluster."""
    workers = max(1, item.job.workers)
    return {"CPU": item.job.cpus * workers, "GPU": item.job.gpus * workers}


def startable(
    waiting: Iterable[Planned],
    done: Collection[str],
    running: Iterable[Planned],
    resources: Mapping[str, float],
) -> list[Planned]:
    """Jobs whose inputs are done (by name) and that fit beside `running`, in the order to start them.

    All datasets come first: a fault in one is found before anything trains. A gang for which there is no
    room yet keeps its place from all that come after it.
    """
    running = list(running)
    due = [item for item in waiting if item.job.stage != compare.STAGE]
    if any(item.job.stage == prepare.STAGE for item in [*due, *running]):
        due = [item for item in due if item.job.stage == prepare.STAGE]
    due = [item for item in due if all(name in done for name in item.job.inputs.values())]
    due.sort(key=lambda item: (STAGES.index(item.job.stage), -item.job.cost))
    free = {kind: resources.get(kind, 0.0) for kind in _KINDS}
    for item in running:
        free = _less(free, needs(item))
    chosen = []
    for item in due:
        fits = all(need <= free[kind] + 1e-6 for kind, need in needs(item).items())
        if fits:
            chosen.append(item)
        if fits or item.job.workers:
            free = _less(free, needs(item))
    return chosen


def _less(free: Mapping[str, float], need: Mapping[str, float]) -> dict[str, float]:
    return {kind: free[kind] - need[kind] for kind in _KINDS}


def orphans(waiting: Iterable[Planned], failed: Collection[str]) -> list[tuple[Planned, str]]:
    """Jobs that can never run, because an input failed, and the sentence that says so.

    The comparison is none of them: it shows what there is.
    """
    return [
        (item, f"its input {broken} failed")
        for item in waiting
        if item.job.stage != compare.STAGE
        and (broken := next((name for name in item.job.inputs.values() if name in failed), None))
    ]


def check_fits(items: Iterable[Planned], resources: Mapping[str, float]) -> None:
    """Refuse at once what can never run, which Ray would wait for for ever.

    Raises:
        EnvironmentUnfit: names the job, what it needs and what there is.
    """
    for item in items:
        for kind, need in needs(item).items():
            if need > resources.get(kind, 0):
                raise EnvironmentUnfit(
                    f"{item.job.name} needs {need:g} {kind}, the cluster has {resources.get(kind, 0):g}",
                    "a cluster that holds every job",
                    "lower pretrain.gang.workers or what each takes, or use a larger cluster",
                )

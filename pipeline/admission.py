"""Which of the due jobs may start now: arithmetic over what runs and what the cluster has.

Ray would queue everything by itself, but not in our order: a gang that waits for its place must hold back
the small jobs, which else would never let it in, and the longest job goes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from pipeline.graph import Planned
from pipeline.stages import compare, prepare
from pipeline.stages.catalog import STAGES

_KINDS = ("CPU", "GPU")


def needs(item: Planned) -> dict[str, float]:
    """What a job takes of the cluster, a gang with all its ranks."""
    workers = max(1, item.job.workers)
    return {"CPU": item.job.cpus * workers, "GPU": item.job.gpus * workers}


def size_for(item: Planned, room: Mapping[str, float]) -> int:
    """The most ranks that a gang may have within `room`; 0 where not even its least fit."""
    for size in sorted(item.job.sizes, reverse=True):
        if _fits(needs(_of_size(item, size)), room):
            return size
    return 0


def free(total: Mapping[str, float], running: Iterable[Planned]) -> dict[str, float]:
    """What `running` leave of the cluster."""
    room = {kind: total.get(kind, 0.0) for kind in _KINDS}
    for item in running:
        room = _less(room, needs(item))
    return room


def startable(
    waiting: Iterable[Planned],
    done: Collection[str],
    running: Iterable[Planned],
    total: Mapping[str, float],
) -> list[Planned]:
    """Jobs whose inputs are done (by name) and that fit beside `running`, in the order to start them.

    All datasets come first: a fault in one is found before anything trains. A gang gets as many ranks as
    there is room for, within its range; one that has no room yet keeps its least from all that come after.
    """
    running = list(running)
    due = [item for item in waiting if item.job.stage != compare.STAGE]
    if any(item.job.stage == prepare.STAGE for item in [*due, *running]):
        due = [item for item in due if item.job.stage == prepare.STAGE]
    due = [item for item in due if all(name in done for name in item.job.inputs.values())]
    due.sort(key=lambda item: (STAGES.index(item.job.stage), -item.job.cost))
    room = free(total, running)
    chosen = []
    for waiting_item in due:
        item = waiting_item
        if item.job.workers:
            item = _of_size(item, size_for(item, room) or min(item.job.sizes))
        fits = _fits(needs(item), room)
        if fits:
            chosen.append(item)
        if fits or item.job.workers:
            room = _less(room, needs(item))
    return chosen


def lacking(waiting: Iterable[Planned], total: Mapping[str, float]) -> tuple[Planned, str] | None:
    """The first job that does not fit even into the idle cluster, and the sentence that says so."""
    for item in waiting:
        least = _of_size(item, min(item.job.sizes)) if item.job.workers else item
        for kind, need in needs(least).items():
            there = total.get(kind, 0.0)
            if need > there + 1e-6:
                return item, f"{item.job.name} needs {need:g} {kind}, the cluster has {there:g}"
    return None


def _of_size(item: Planned, workers: int) -> Planned:
    return replace(item, job=replace(item.job, workers=workers))


def _fits(need: Mapping[str, float], room: Mapping[str, float]) -> bool:
    return all(need[kind] <= room.get(kind, 0.0) + 1e-6 for kind in _KINDS)


def _less(room: Mapping[str, float], need: Mapping[str, float]) -> dict[str, float]:
    return {kind: room[kind] - need[kind] for kind in _KINDS}


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

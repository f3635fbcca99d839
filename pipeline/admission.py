"""Whether a job fits: arithmetic over what it needs and what the cluster has.

Room is counted over the whole cluster, and Ray finds the node; whether any node can hold a job at all is
asked of each node (`lacking`), because Ray would wait for such a node for ever.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pipeline.graph import Job, Planned

Resources = Mapping[str, float]

_KINDS = ("CPU", "GPU")
_TINY = 1e-6  # sums of fractions of a device are not exact


def needs(item: Planned) -> dict[str, float]:
    """What a job takes of the cluster, a gang with all its ranks."""
    workers = max(1, item.job.workers)
    return {"CPU": item.job.cpus * workers, "GPU": item.job.gpus * workers}


def total(nodes: Iterable[Resources]) -> dict[str, float]:
    """What all nodes have together."""
    nodes = list(nodes)
    return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in _KINDS}


def less(room: Resources, need: Resources) -> dict[str, float]:
    return {kind: room.get(kind, 0.0) - need[kind] for kind in _KINDS}


def more(room: Resources, freed: Resources) -> dict[str, float]:
    return {kind: room.get(kind, 0.0) + freed[kind] for kind in _KINDS}


def fits(need: Resources, room: Resources) -> bool:
    return all(need[kind] <= room.get(kind, 0.0) + _TINY for kind in _KINDS)


def size_for(item: Planned, room: Resources) -> int:
    """The most ranks that a gang may have within `room`; 0 where not even its least fit."""
    sizes = sorted(item.job.sizes)
    most = bisect_right(sizes, _places(item.job, room))
    return sizes[most - 1] if most else 0


def of_size(item: Planned, workers: int) -> Planned:
    return replace(item, job=replace(item.job, workers=workers))


def _places(job: Job, room: Resources) -> float:
    """How many ranks, or jobs of one process, `room` holds."""
    each = {"CPU": job.cpus, "GPU": job.gpus}
    counts = [math.floor((room.get(kind, 0.0) + _TINY) / need) for kind, need in each.items() if need > 0]
    return max(0, min(counts, default=math.inf))


def on_one_node(item: Planned, nodes: Iterable[Resources]) -> bool:
    """Whether a single node holds all ranks of a gang."""
    return any(fits(needs(item), node) for node in nodes)


def lacking(waiting: Iterable[Planned], nodes: Sequence[Resources]) -> tuple[Planned, str] | None:
    """The first job that does not fit even into the idle cluster, and the sentence that says so."""
    room = total(nodes)
    seen = set()
    for item in waiting:
        job = item.job
        least = min(job.sizes) if job.workers else 0
        shape = (job.cpus, job.gpus, least)
        if shape in seen:
            continue
        seen.add(shape)
        for kind, need in needs(of_size(item, least)).items():
            if need > room[kind] + _TINY:
                return item, f"{job.name} needs {need:g} {kind}, the cluster has {room[kind]:g}"
        places = sum(_places(job, node) for node in nodes)
        if places < max(1, least):
            gpus = f" and {job.gpus:g} GPU" if job.gpus else ""
            return item, (
                f"{job.name} needs {max(1, least)} × {job.cpus:g} CPU{gpus}, each on one node; "
                f"the cluster's {len(nodes)} nodes hold {places:g} of them"
            )
    return None

"""Judgements over what nodes said: facts in, checks out; no cluster, no clock, no files.

A check is data: its name, its level, the three parts of every message of vitline, and the nodes at fault,
so that the next start can leave them out (launch/exclusion.py). Rates are judged against the gang's own
median, so no table of hardware is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Level = Literal["pass", "warn", "fail"]
Facts = Mapping[str, Mapping[str, Any]]  # node → what doctor_node.examine returned

_GIB = 2**30
_SLOW, _SLUGGISH = 0.85, 0.93  # shares of the median rate
_NOFILE = 65_536
_LITTLE_SHM, _SHM = 64 * 2**20, _GIB


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the doctor's table. `at`: the nodes at fault, none where it is not a matter of nodes."""

    name: str
    level: Level
    found: str
    expected: str
    do: str
    at: tuple[str, ...] = ()


def passed(name: str, found: str) -> Check:
    return Check(name, "pass", found, "", "")


def verdict(
    name: str,
    level: Level,
    faults: Sequence[str],
    good: str,
    expected: str,
    do: str,
    at: Iterable[str] = (),
) -> Check:
    """`level` with all faults named, or a pass that says `good`."""
    if not faults:
        return passed(name, good)
    return Check(name, level, "; ".join(faults), expected, do, tuple(dict.fromkeys(at)))


# ---------------------------------------------------------------- room


def limits(facts: Facts) -> list[Check]:
    """Open files and shared memory."""
    files = [f"{node}: {fact['nofile']}" for node, fact in facts.items() if fact["nofile"] < _NOFILE]
    tight = {
        node: f"{node}: {fact['shm_bytes'] / 2**20:.0f} MiB"
        for node, fact in facts.items()
        if fact["shm_bytes"] is not None and fact["shm_bytes"] < _SHM
    }
    none = any((fact["shm_bytes"] or _SHM) < _LITTLE_SHM for fact in facts.values())
    return [
        verdict(
            "open files",
            "warn",
            files,
            f"at least {_NOFILE:,}",
            f"a limit of {_NOFILE:,} or more",
            f"ulimit -n {_NOFILE}, or LimitNOFILE of the service that starts the node",
        ),
        verdict(
            "/dev/shm",
            "fail" if none else "warn",
            list(tight.values()),
            "1 GiB or more free",
            "1 GiB free for NCCL and Ray's object store",
            "docker run --shm-size 8g, or a memory-backed emptyDir at /dev/shm",
            tight,
        ),
    ]


def memory_fits(facts: Facts, need: Mapping[str, int]) -> Check:
    """`need` is what the plan expects of the ranks on each node, bytes; an estimate, so a warning first."""
    short = {
        node: need[node] / max(fact["memory_bytes"], 1)
        for node, fact in facts.items()
        if need.get(node, 0) > fact["memory_bytes"]
    }
    faults = [
        f"{node} has {facts[node]['memory_bytes'] / _GIB:.1f} GiB free, its ranks take about "
        f"{need[node] / _GIB:.1f}"
        for node in short
    ]
    least = min(fact["memory_bytes"] for fact in facts.values())
    return verdict(
        "memory",
        "fail" if any(share > 2 for share in short.values()) else "warn",
        faults,
        f"at least {least / _GIB:.1f} GiB free",
        "room for the ranks of each node (vitline plan)",
        "end what else runs there, lower pretrain.micro_batch, or spread over more nodes",
        short,
    )


def disk_fits(facts: Facts, checkpoint_bytes: int, all_bytes: int) -> Check:
    """A fifth is added to the plan. Without room for one checkpoint, nothing can go well."""
    free = {node: fact["disk_bytes"] for node, fact in facts.items() if fact["disk_bytes"] is not None}
    short = {node: size for node, size in free.items() if size < 1.2 * all_bytes}
    hopeless = any(size < 1.2 * checkpoint_bytes for size in short.values())
    return verdict(
        "disk",
        "fail" if hopeless else "warn",
        [f"{node} sees {size / _GIB:.1f} GiB free" for node, size in short.items()],
        f"{min(free.values(), default=0) / _GIB:.1f} GiB free at the run's directory",
        f"{1.2 * all_bytes / _GIB:.1f} GiB for the run, {1.2 * checkpoint_bytes / _GIB:.1f} for a checkpoint",
        "free some, lower pretrain.checkpoint.keep, or set root to a larger disk",
        short,
    )


# ---------------------------------------------------------------- devices and data


def gpu_health(facts: Facts, wanted: bool) -> list[Check]:
    """GPUs alike on all nodes, free, without errors; `wanted`: the configuration asks for some."""
    if not wanted and not any(fact["gpus"] for fact in facts.values()):
        return [passed("GPUs", "none there, none asked for")]
    kinds = {
        node: f"{len(fact['gpus'])} × {fact['gpus'][0]['name'] if fact['gpus'] else 'GPU'}"
        for node, fact in facts.items()
    }
    none = [node for node, fact in facts.items() if wanted and not fact["gpus"]]
    faults = [f"{node} has {value}, most have {most}" for node, value, most in odd_ones(kinds)]
    faults += [f"{node} has none" for node in none]
    odd = [*(node for node, _, _ in odd_ones(kinds)), *none]
    held, broken = [], {}
    for node, fact in facts.items():
        for number, gpu in enumerate(fact["gpus"]):
            place = f"{node} GPU {number}"
            used, whole = _float(gpu["memory.used"]), _float(gpu["memory.total"])
            if used > 0.05 * whole:
                held.append(f"{place}: {used:.0f} of {whole:.0f} MiB in use")
            if _float(gpu["ecc.errors.uncorrected.volatile.total"]) > 0:
                broken[place] = f"{place}: uncorrected memory errors"
            if gpu["clocks_throttle_reasons.hw_slowdown"] == "Active":
                held.append(f"{place}: slowed down by its hardware")
    return [
        verdict(
            "GPUs",
            "fail",
            faults,
            common(kinds),
            "the same GPUs on all nodes",
            "leave the odd nodes out",
            odd,
        ),
        verdict(
            "GPU errors",
            "fail",
            list(broken.values()),
            "none",
            "no uncorrected errors",
            "drain the node, reset the GPU",
            map(node_of, broken),
        ),
        verdict(
            "GPUs free",
            "warn",
            held,
            "yes",
            "GPUs that nobody else uses, at full clocks",
            "see nvidia-smi for the process that holds it; check cooling and power",
        ),
    ]


def rates(facts: Facts) -> Check:
    """Matrix products: every device near the median. On processors others may be at work: a warning."""
    speeds = {
        f"{node}{f' GPU {number}' if fact['gpus'] else ''}": speed
        for node, fact in facts.items()
        for number, speed in enumerate(fact["gflops"] or ())
    }
    if not speeds:
        return passed("matrix products", "not measured")
    middle = median(speeds.values())
    slow = {place: speed / middle for place, speed in speeds.items() if speed < _SLUGGISH * middle}
    on_gpus = any(fact["gpus"] for fact in facts.values())
    return verdict(
        "matrix products",
        "fail" if on_gpus and any(share < _SLOW for share in slow.values()) else "warn",
        [f"{place} at {share:.0%} of the median" for place, share in slow.items()],
        f"median {middle:,.0f} GFLOP/s",
        f"at least {_SLUGGISH:.0%} of the median {middle:,.0f} GFLOP/s",
        "look for other processes, heat and power limits on these; leave them out if it stays",
        # On a GPU that is only sluggish the run goes on.
        [node_of(place) for place, share in slow.items() if share < _SLOW],
    )


def data_readable(facts: Facts) -> Check:
    """The manifest alike on all nodes, and the first and last shard readable from all."""
    manifests = {node: str(fact["data"]["manifest"]) for node, fact in facts.items()}
    faults = [f"{node}: manifest {value}, most {most}" for node, value, most in odd_ones(manifests)]
    blind = [node for node, value in manifests.items() if value.startswith("unreadable")]
    faults += [f"{node}: manifest {manifests[node]}" for node in blind]
    blind += [node for node, _, _ in odd_ones(manifests)]
    speeds = []
    for node, fact in facts.items():
        for name, read in fact["data"]["shards"].items():
            if isinstance(read, str):
                faults.append(f"{node}: {name}: {read}")
                blind.append(node)
            else:
                speeds.append(read)
    slowest = (
        f"slowest first read {min(speeds):,.0f} MiB/s" if speeds else "not there yet: the run prepares it"
    )
    return verdict(
        "data",
        "fail",
        faults,
        slowest,
        "the same dataset, readable from all nodes",
        "mount the same file system on all nodes, or check the credentials of the store",
        blind,
    )


# ---------------------------------------------------------------- arithmetic


def odd_ones(values: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    """(node, its value, the most frequent value) of each node that differs from most."""
    most = Counter(values.values()).most_common(1)[0][0]
    return [(node, value, most) for node, value in values.items() if value != most]


def node_of(place: str) -> str:
    """The node of `NODE` or `NODE GPU N`."""
    return place.split(" GPU ")[0]


def common(values: Mapping[str, Any]) -> str:
    shown = values.values() if all("×" in str(value) for value in values.values()) else None
    if shown is not None:
        return Counter(map(str, shown)).most_common(1)[0][0]
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return 0.0

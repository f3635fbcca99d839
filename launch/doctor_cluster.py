"""The doctor's hands: Ray tasks and actors pinned to nodes, and a deadline over all of them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.doctor_gang import Member
from launch.doctor_node import examine
from pipeline.config import RunConfig

_PINGS = 3


@dataclass(frozen=True, slots=True)
class Node:
    """An alive node: Ray's id, its address, a name for people, and how many ranks it can hold."""

    id: str
    address: str
    name: str
    slots: int


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes that a run may use."""

    nodes: tuple[Node, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes)

    @property
    def slots(self) -> dict[str, int]:
        return {node.name: node.slots for node in self.nodes}

    def examine(
        self, request: Mapping[str, Any], deadline: float
    ) -> tuple[dict[str, dict[str, Any]], list[str]]:
        """Facts of each node, and the nodes that said nothing before `deadline` (of time.monotonic)."""
        tasks = {
            ray.remote(examine)
            .options(num_cpus=0, max_retries=0, scheduling_strategy=_on(node))
            .remote(dict(request)): node
            for node in self.nodes
        }
        waiting = list(tasks)
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=_left(deadline))
        facts, silent = {}, [tasks[task].name for task in waiting if task not in ready]
        for task in waiting:
            if task not in ready:
                ray.cancel(task, force=True)
                continue
            try:
                facts[tasks[task].name] = ray.get(task)
            except ray.exceptions.RayError as error:
                silent.append(f"{tasks[task].name} ({_first_line(error)})")
        return facts, silent

    def members(self, gpus: Mapping[str, int]) -> Members:
        """An actor on each node that answered, one for each of its GPUs."""
        return Members([(node, gpus[node.name]) for node in self.nodes if node.name in gpus])


class Members:
    """The actors of the gang that tests itself. Methods raise TimeoutError, which names what was too slow."""

    def __init__(self, nodes: Sequence[tuple[Node, int]]) -> None:
        self._actors: dict[str, Any] = {}
        self._addresses: dict[str, str] = {}
        self.firsts: list[str] = []  # one place for each node
        kind = ray.remote(Member)
        for node, gpus in nodes:
            for gpu in range(gpus) if gpus else (None,):
                place = node.name if gpu is None else f"{node.name} GPU {gpu}"
                options = kind.options(num_cpus=0, scheduling_strategy=_on(node), max_concurrency=4)
                self._actors[place] = options.remote(gpu)
                self._addresses[place] = node.address
                if not gpu:
                    self.firsts.append(place)

    @property
    def places(self) -> list[str]:
        return list(self._actors)

    def clock_offsets(self, deadline: float) -> dict[str, tuple[float, float]]:
        """Seconds that each node's clock is ahead of this one, and half the shortest round trip."""
        self._get("starting", [self._actors[place].now.remote() for place in self.firsts], deadline)
        offsets = {}
        for place in self.firsts:
            rounds = []
            for _ in range(_PINGS):
                sent = time.time()
                (theirs,) = self._get("the clock", [self._actors[place].now.remote()], deadline)
                back = time.time()
                rounds.append(((back - sent) / 2, theirs - (sent + back) / 2))
            half, offset = min(rounds)
            offsets[place] = (offset, half)
        return offsets

    def exchange_files(
        self, directory: str, deadline: float
    ) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Each node writes a file and reads everybody's: node → content, reader → writer → content."""
        names = {place: f"node-{number:05d}" for number, place in enumerate(self.firsts)}
        writing = [self._actors[place].write.remote(directory, names[place]) for place in self.firsts]
        written = dict(zip(self.firsts, self._get("writing", writing, deadline), strict=True))
        patience = min(30.0, max(1.0, _left(deadline) / 2))
        reading = [
            self._actors[place].read.remote(directory, list(names.values()), patience)
            for place in self.firsts
        ]
        answers = self._get("reading", reading, deadline)
        seen = {
            place: dict(zip(self.firsts, texts, strict=True))
            for place, texts in zip(self.firsts, answers, strict=True)
        }
        return written, seen

    def reach(self, deadline: float) -> dict[tuple[str, str], str]:
        """Every node connects to every other: (from, to) → what went wrong, or nothing."""
        listening = [self._actors[place].listen.remote() for place in self.firsts]
        ports = dict(zip(self.firsts, self._get("listening", listening, deadline), strict=True))
        asked = {
            place: [
                (ports[other][0], self._addresses[other], ports[other][1])
                for other in self.firsts
                if other != place
            ]
            for place in self.firsts
        }
        connecting = [self._actors[place].reach.remote(asked[place]) for place in self.firsts]
        texts = self._get("connecting", connecting, deadline)
        pairs = list(itertools.permutations(self.firsts, 2))
        return dict(zip(pairs, itertools.chain.from_iterable(texts), strict=True))

    def all_reduce(self, deadline: float) -> dict[str, dict[str, Any]]:
        """Place of each rank → its bandwidths."""
        places = self.places
        (port,) = self._get("a free port", [self._actors[places[0]].free_port.remote()], deadline)
        address = self._addresses[places[0]]
        running = [
            self._actors[place].all_reduce.remote(rank, len(places), address, port, True)
            for rank, place in enumerate(places)
        ]
        return dict(zip(places, self._get("all-reduce", running, deadline), strict=True))

    def close(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)

    def _get(self, what: str, tasks: list[Any], deadline: float) -> list[Any]:
        try:
            answers: list[Any] = ray.get(tasks, timeout=_left(deadline))
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError(what) from None
        except ray.exceptions.RayError as error:
            raise TimeoutError(f"{what} ({_first_line(error)})") from None
        return answers


# ---------------------------------------------------------------- the cluster


def alive_nodes(config: RunConfig | None) -> Nodes:
    """Nodes that can hold a rank of the run's gang; all that are alive where there is no configuration."""
    found = []
    for number, node in enumerate(sorted(ray.nodes(), key=lambda node: str(node["NodeID"]))):
        slots = 1 if config is None else _slots(node["Resources"], config)
        if not node["Alive"] or not slots:
            continue
        # Several nodes on one machine have one host name.
        name = f"{node['NodeManagerHostname']}" + (f"#{number}" if _shares_host(node) else "")
        found.append(Node(str(node["NodeID"]), str(node["NodeManagerAddress"]), name, slots))
    return Nodes(tuple(found))


def _shares_host(node: Mapping[str, Any]) -> bool:
    hosts = [other["NodeManagerHostname"] for other in ray.nodes() if other["Alive"]]
    return hosts.count(node["NodeManagerHostname"]) > 1


def _slots(resources: Mapping[str, float], config: RunConfig) -> int:
    gang = config.pretrain.gang
    fits = resources.get("CPU", 0) / gang.cpus_per_worker
    if gang.gpus_per_worker:
        fits = min(fits, resources.get("GPU", 0) / gang.gpus_per_worker)
    return int(fits + 1e-6)


def spread(slots: Mapping[str, int], workers: int) -> dict[str, int]:
    """Ranks on each node when they are packed, largest node first."""
    ranks = {}
    for node in sorted(slots, key=lambda node: -slots[node]):
        ranks[node] = min(slots[node], workers)
        workers -= ranks[node]
    return ranks


def control_address() -> str:
    """HOST:PORT of Ray's control store."""
    return str(ray.get_runtime_context().gcs_address)


def auth_is_on() -> bool:
    return os.environ.get("RAY_AUTH_MODE") == "token"


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node_id=node.id, soft=False)


def _left(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

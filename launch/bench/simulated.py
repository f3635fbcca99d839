"""A cluster that is made up, with a clock of its own, for the real graph, queue and workload.

`SimulatedCluster` is an Executor (pipeline/executor.py), so only where jobs run and time passes is invented.
Nodes fail and come back repaired. A job ends when its length has passed; a failure of its node is noticed
`detect_s` later and takes all of it, from a gang what it did since its last checkpoint. A gang that is asked
to stop has saved at once. Jobs get nodes packed, the first that has room. Nothing else is in it: no slow
network, no store, no Ray.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import insort
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipeline.admission import Resources, fits, less, needs
from pipeline.graph import Outcome, Planned

# The workload looks by itself whether a gang can grow (each 10 s) and whether it has waited long enough for
# nodes (`cluster.wait_s`). Time jumps only when nothing has happened for longer than both.
_LOOK_S = 10.0
_RESTLESS_S = 90.0
_TINY = 1e-6  # sums of fractions of a device are not exact


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a simulation assumes; times in seconds."""

    nodes: int = 1000
    gpus: float = 8  # of a node
    cpus: float = 64
    repair_s: float = 4 * 3600.0
    detect_s: float = 5.0
    gang_start_s: float = 90.0  # processes, process group, load of the checkpoint
    task_start_s: float = 10.0
    checkpoint_s: float = 600.0  # between two of a gang


@dataclass(slots=True)
class Account:
    """What came of it. Seconds of devices: GPUs × seconds, of all jobs; the work of lost attempts is held,
    not useful."""

    failures: int = 0
    hit: int = 0  # attempts that a failure ended
    useful_s: float = 0.0
    held_s: float = 0.0
    alive_s: float = 0.0  # of all GPUs, while their nodes were there


@dataclass(slots=True)
class _Attempt:
    item: Planned
    began: float
    nodes: list[int]
    cut_at: float | None = None  # when one of its nodes failed


@dataclass(slots=True)
class _Node:
    room: Resources
    alive: bool = True  # as far as is known
    failed_at: float | None = None
    attempts: set[int] = field(default_factory=set)


def drawn_failures(world: World, per_hour: float, seed: int) -> Iterator[tuple[float, int]]:
    """(time, node) of failures without an end, `per_hour` in the whole cluster."""
    draw, time = random.Random(seed), 0.0
    while per_hour > 0:
        time += draw.expovariate(per_hour / 3600)
        yield time, draw.randrange(world.nodes)


class SimulatedCluster:
    """Args:
    seconds: length of each job by digest, of a gang with all its ranks.
    failures: (time, node), in order.
    """

    def __init__(
        self, world: World, seconds: Mapping[str, float], failures: Iterable[tuple[float, int]] = ()
    ) -> None:
        self._world, self._seconds, self._failures = world, seconds, iter(failures)
        self._whole: dict[str, float] = {"CPU": world.cpus, "GPU": world.gpus}
        self._hosts = [_Node(dict(self._whole)) for _ in range(world.nodes)]
        self._open = list(range(world.nodes))  # with a GPU and a CPU to spare, in order
        self._alive: list[Resources] | None = None
        self._attempts: dict[int, _Attempt] = {}
        self._queued: list[Planned] = []  # accepted, no node has room for it yet
        self._saved: dict[str, float] = {}  # digest of a gang → seconds of its length that are saved
        self._events: list[tuple[float, int, str, int]] = []
        self._count = 0
        self._now = 0.0
        self._look_at = self._restless_until = 0.0
        self.account = Account()
        self._next_failure()

    # ---------------------------------------------------------------- Executor

    @contextmanager
    def connected(self) -> Iterator[None]:
        yield

    def nodes(self) -> list[Resources]:
        if self._alive is None:
            self._alive = [self._whole for host in self._hosts if host.alive]
        return self._alive

    def now(self) -> float:
        return self._now

    def cost(self, item: Planned) -> float:
        return self._seconds[item.digest]

    def start(self, item: Planned) -> None:
        if not self._place(item):
            self._queued.append(item)

    def ask_to_stop(self, digest: str) -> None:
        for key, attempt in self._attempts.items():
            if attempt.item.digest == digest:
                self._at(self._now, "stop", key)

    def poll(self, timeout_s: float) -> list[Outcome]:
        """Jumps to the next moment at which something happens, however far away it is."""
        assert self._events, "nothing will ever happen"
        time = self._events[0][0]
        self.account.alive_s += (time - self._now) * self._world.gpus * len(self.nodes())
        self._now = time
        outcomes: list[Outcome] = []
        while self._events and self._events[0][0] <= self._now:
            _, _, kind, key = heapq.heappop(self._events)
            outcomes += self._happen(kind, key)
            if kind != "look":
                self._restless_until = self._now + _RESTLESS_S
        self._queued = [item for item in self._queued if not self._place(item)]
        if self._look_at <= self._now < self._restless_until:
            self._look_at = self._now + _LOOK_S
            self._at(self._look_at, "look", 0)
        return outcomes

    # ---------------------------------------------------------------- what happens

    def _at(self, time: float, kind: str, key: int) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, kind, key))

    def _happen(self, kind: str, key: int) -> list[Outcome]:
        if kind == "fail":
            self._fail(key)
        elif kind == "found":
            self._hosts[key].alive, self._alive = False, None
            return [self._end(attempt, "lost") for attempt in sorted(self._hosts[key].attempts)]
        elif kind == "repaired":
            host = self._hosts[key]
            host.alive, host.failed_at, self._alive = True, None, None
        elif key in self._attempts and self._attempts[key].cut_at is None:
            # What one of its nodes took away neither ends nor stops.
            return [self._end(key, kind)]
        return []

    def _next_failure(self) -> None:
        coming = next(self._failures, None)
        if coming is not None:
            self._at(coming[0], "fail", coming[1])

    def _fail(self, number: int) -> None:
        self._next_failure()
        host = self._hosts[number]
        if host.failed_at is not None:
            return
        self.account.failures += 1
        host.failed_at = self._now
        for key in host.attempts:
            attempt = self._attempts[key]
            attempt.cut_at = self._now if attempt.cut_at is None else attempt.cut_at
        self._at(self._now + self._world.detect_s, "found", number)
        self._at(self._now + self._world.repair_s, "repaired", number)

    def _end(self, key: int, kind: str) -> Outcome:
        attempt = self._attempts.pop(key)
        item, digest = attempt.item, attempt.item.digest
        before = self._saved.get(digest, 0.0)
        kept = self._seconds[digest] - before if kind == "done" else self._kept(attempt, kind)
        self._saved[digest] = before + kept
        self.account.useful_s += kept * item.job.gpus * max(item.job.sizes, default=1)
        self.account.held_s += (self._now - attempt.began) * needs(item)["GPU"]
        self.account.hit += kind == "lost"
        for number in attempt.nodes:
            self._give(number, less({"CPU": 0.0, "GPU": 0.0}, _each(item)), key, done=True)
        if kind == "lost":
            return Outcome(digest=digest, error="its node failed", retry=True, progressed=kept > 0)
        return Outcome(digest=digest, stopped=kind == "stop")

    def _kept(self, attempt: _Attempt, kind: str) -> float:
        """Seconds of the job's length that are saved: of a gang those before its last checkpoint."""
        job, world = attempt.item.job, self._world
        if not job.workers:
            return 0.0
        until = self._now if attempt.cut_at is None else attempt.cut_at
        worked = max(0.0, until - attempt.began - world.gang_start_s)
        if kind == "lost":
            worked = math.floor(worked / world.checkpoint_s) * world.checkpoint_s
        return worked * job.workers / max(job.sizes)

    # ---------------------------------------------------------------- places

    def _place(self, item: Planned) -> bool:
        """Give an attempt its nodes; False where they have no room."""
        places: list[int] = []
        ranks, each = max(1, item.job.workers), _each(item)
        # Where a job needs no GPU, a node whose GPUs are taken will do.
        for number in self._open if each["GPU"] else range(len(self._hosts)):
            room = self._hosts[number].room
            while self._hosts[number].alive and len(places) < ranks and fits(each, room):
                places.append(number)
                room = less(room, each)
            if len(places) == ranks:
                break
        else:
            return False
        self._count += 1
        key = self._count
        for number in places:
            self._give(number, each, key, done=False)
        failed = [at for at in (self._hosts[number].failed_at for number in places) if at is not None]
        self._attempts[key] = _Attempt(item, self._now, places, self._now if failed else None)
        left = self._seconds[item.digest] - self._saved.get(item.digest, 0.0)
        if item.job.workers:
            left *= max(item.job.sizes) / item.job.workers
        start_s = self._world.gang_start_s if item.job.workers else self._world.task_start_s
        self._at(self._now + start_s + left, "done", key)
        return True

    def _give(self, number: int, each: Resources, key: int, *, done: bool) -> None:
        """Take `each` out of a node's room for the attempt `key`, or (negative, `done`) back into it."""
        host = self._hosts[number]
        was_full = min(host.room.values()) <= _TINY
        host.room = less(host.room, each)
        (host.attempts.discard if done else host.attempts.add)(key)
        is_full = min(host.room.values()) <= _TINY
        if is_full and not was_full:
            self._open.remove(number)
        elif was_full and not is_full:
            insort(self._open, number)


def _each(item: Planned) -> dict[str, float]:
    """What one rank, or the job of one process, takes."""
    return {"CPU": item.job.cpus, "GPU": item.job.gpus}

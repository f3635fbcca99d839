"""The jobs that wait, in the order in which they may start; no files and no Ray.

Ray would queue everything by itself, but not in our order: a gang that waits for its place must hold back
the small jobs, which else would never let it in, and the longest job goes first. A change costs only what
depends on it, so that ten thousand jobs are looked after as fast as ten.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from pipeline.admission import Resources, fits, less, needs, of_size, size_for
from pipeline.graph import Planned
from pipeline.stages import compare, prepare
from pipeline.stages.catalog import STAGES

_Key = tuple[int, float, int, str]
_Shape = tuple[float, float]  # CPU and GPU that a job takes at least


class JobQueue:
    """Waiting jobs by digest. `cost` says how long a job will take, once its inputs are done; any unit.

    All datasets come first: a fault in one is found before anything trains. Then stage by stage, and
    within a stage the longest first.
    """

    def __init__(
        self, items: Iterable[Planned], done: Collection[str], cost: Callable[[Planned], float]
    ) -> None:
        self._cost = cost
        self._waiting: dict[str, Planned] = {}
        self._missing: dict[str, set[str]] = {}  # digest → names of the inputs that are not done
        self._followers: dict[str, list[str]] = defaultdict(list)  # name → digests that wait for it
        self._order: dict[str, int] = {}
        self._ready: list[_Key] = []
        self._keys: dict[str, _Key] = {}
        self._datasets: set[str] = set()  # names of those that are not prepared yet
        self._shapes: Counter[_Shape] = Counter()  # of what is ready
        for item in items:
            self._enter(item, done)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Planned]:
        return iter(self._waiting.values())

    def _enter(self, item: Planned, done: Collection[str]) -> None:
        self._order[item.digest] = len(self._order)
        self._missing[item.digest] = {name for name in item.job.inputs.values() if name not in done}
        for name in self._missing[item.digest]:
            self._followers[name].append(item.digest)
        if item.job.stage == prepare.STAGE:
            self._datasets.add(item.job.name)
        self.put_back(item)

    def put_back(self, item: Planned) -> None:
        """A job that was taken waits again."""
        self._waiting[item.digest] = item
        if not self._missing[item.digest]:
            self._make_ready(item)

    def _make_ready(self, item: Planned) -> None:
        # Only now is the length of its dataset known.
        item = replace(item, job=replace(item.job, cost=self._cost(item)))
        self._waiting[item.digest] = item
        key = (STAGES.index(item.job.stage), -item.job.cost, self._order[item.digest], item.digest)
        self._keys[item.digest] = key
        insort(self._ready, key)
        self._shapes[_shape(item)] += 1

    def take(self, digest: str) -> Planned:
        """Take a job out, to start it or to give it up."""
        key = self._keys.pop(digest, None)
        if key is not None:
            del self._ready[bisect_left(self._ready, key)]
            self._shapes -= Counter([_shape(self._waiting[digest])])
        return self._waiting.pop(digest)

    def finished(self, name: str) -> None:
        """The job `name` is done: others may have had to wait for it alone."""
        self._datasets.discard(name)
        for digest in self._followers.pop(name, ()):
            self._missing[digest].discard(name)
            if not self._missing[digest] and digest in self._waiting:
                self._make_ready(self._waiting[digest])

    def failed(self, name: str) -> list[Planned]:
        """The job `name` failed for good: takes out and returns what can never run, but for the comparison,
        which shows what there is."""
        self._datasets.discard(name)
        return [
            self.take(digest)
            for digest in self._followers.pop(name, ())
            if digest in self._waiting and self._waiting[digest].job.stage != compare.STAGE
        ]

    def startable(self, room: Resources) -> list[Planned]:
        """Jobs whose inputs are done and that fit into `room` together, in the order to start them.

        A gang gets as many ranks as there is room for, within its range; one that has no room yet keeps
        its least from all that come after. Nothing is taken out.
        """
        chosen: list[Planned] = []
        fitting_shapes = self._fitting(room)
        for stage, _, _, digest in self._ready:
            # Mostly the room is used up long before the jobs are: thousands need not be looked at.
            if not fitting_shapes or STAGES[stage] == compare.STAGE:
                break
            if self._datasets and STAGES[stage] != prepare.STAGE:
                break
            item = self._waiting[digest]
            if not item.job.workers and _shape(item) not in fitting_shapes:
                continue
            if item.job.workers:
                item = of_size(item, size_for(item, room) or min(item.job.sizes))
            fitting = fits(needs(item), room)
            if fitting:
                chosen.append(item)
            if fitting or item.job.workers:
                room = less(room, needs(item))
                fitting_shapes = self._fitting(room)
        return chosen

    def _fitting(self, room: Resources) -> set[_Shape]:
        return {(cpus, gpus) for cpus, gpus in self._shapes if fits({"CPU": cpus, "GPU": gpus}, room)}


def _shape(item: Planned) -> _Shape:
    need = needs(of_size(item, min(item.job.sizes)) if item.job.workers else item)
    return need["CPU"], need["GPU"]

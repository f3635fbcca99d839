"""What scheduled retraining remembers, all below RUN/retrain, the directory of the configuration's own name.

    lease.json        who is at a tick                      fence.json   how many ticks there were
    ledger.jsonl      one line a tick: what was decided, why, on which numbers
    queue.json        a run that is wanted after the present one
    paused.json       why no round may begin, while somebody wants that
    shards.json       samples and hashes of shards that were read once (a cache)
    champion/vN/      weights of the champion, as the registry gave them
    runs/NAME-KEY-champion/    the champion, evaluated on the test images of that round
    runs/NAME-KEY/    one run directory a round, and in it
        round.json    the round: its data, its start, how far it has come
        gate.json     the evidence of its verdict

The rounds themselves are the state: the newest one that has not ended goes on, the newest one that came to
a verdict says which data was seen. So nothing is lost with any other file. All are replaced by rename.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import Busy
from pipeline.events import Event, EventLog, read_events
from pipeline.lease import dead_holder
from pipeline.rundir import RunDir, read_json, write_json

Phase = Literal[
    "due", "submitted", "evaluated", "rejudging", "judged",
    "promoted", "rejected", "inconclusive", "waiting", "failed", "replaced",
]  # fmt: skip
# A round in one of these has ended; one in SEEN came to a verdict about its data.
SEEN = ("promoted", "rejected", "inconclusive", "waiting")
ENDED = (*SEEN, "failed", "replaced")


@dataclass(frozen=True, slots=True)
class SeenShard:
    """One shard under the watched directory."""

    name: str
    bytes: int
    mtime_ns: int
    samples: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Round:
    """One time that the run is repeated.

    Args:
        key: of data, settings, code and starting weights: the same four are the same round.
        run: name of its run directory below runs/.
        shards: the data, as it was when the round began. new_samples: of these, not seen before.
        champion: version in the registry when the round began; None: there was none.
        start: weights file it begins from; None: scratch.
        attempts: starts so far. record: what the runner needs to find the last of them.
        again: run in which the champion was evaluated anew, since it was judged on other test images.
        again_attempts: starts of that run. again_why: why it was not.
        version: of the challenger in the registry, once it is registered.
        told: the occasion that was notified last.
    """

    key: str
    run: str
    reason: str
    opened: float
    fence: int
    data: str
    shards: tuple[SeenShard, ...]
    new_samples: int
    phase: Phase = "due"
    champion: str | None = None
    start: str | None = None
    attempts: int = 0
    record: dict[str, Any] | None = None
    ended: float | None = None
    why: str = ""
    again: str | None = None
    again_attempts: int = 0
    again_why: str = ""
    version: str | None = None
    told: str = ""

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def champion_run(self) -> str:
        """Name of the run that evaluates the champion anew, where that is needed."""
        return f"{self.run}-champion"


class State:
    """The files of one retrained run, below `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lease = path / "lease.json"
        self.runs = path / "runs"
        self.shards = path / "shards.json"
        self._fence = path / "fence.json"
        self._queue = path / "queue.json"
        self._paused = path / "paused.json"
        self._ledger = path / "ledger.jsonl"

    # ---------------------------------------------------------------- who is at it

    def left_behind(self) -> str | None:
        """Whose lease lies there though it has died, in words; None: nobody's."""
        holder = dead_holder(self.lease)
        if holder is None:
            return None
        return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"

    def next_fence(self) -> int:
        """A number larger than that of every tick before; to be asked for under the lease."""
        before = read_json(self._fence) or {"fence": 0}
        write_json(self._fence, {"fence": before["fence"] + 1})
        return int(before["fence"]) + 1

    def check_fence(self, fence: int) -> None:
        """Raises Busy when another tick has begun since: this one was taken for dead and may move nothing."""
        now = (read_json(self._fence) or {"fence": 0})["fence"]
        if now != fence:
            raise Busy(
                f"tick {now} has begun while tick {fence} was still at it",
                "one tick at a time; a tick that is not heard of loses its lease",
                "leave it to the other tick; `vitline retrain CONFIG --history` shows both",
            )

    # ---------------------------------------------------------------- rounds

    def run_dir(self, name: str) -> RunDir:
        return RunDir(self.runs / name)

    def gate(self, name: str) -> Path:
        return self.runs / name / "gate.json"

    def write(self, value: Round) -> None:
        write_json(self.runs / value.run / "round.json", asdict(value))

    def rounds(self) -> list[Round]:
        """All rounds, the oldest first."""
        files = sorted(self.runs.glob("*/round.json"))
        found = [_round_of(value) for file in files if (value := read_json(file)) is not None]
        return sorted(found, key=lambda item: (item.opened, item.fence))

    def current(self) -> Round | None:
        """The round that has not ended."""
        return next((item for item in reversed(self.rounds()) if item.phase not in ENDED), None)

    def last_seen(self) -> Round | None:
        """The newest round that came to a verdict: its data is not new any more."""
        return next((item for item in reversed(self.rounds()) if item.phase in SEEN), None)

    # ---------------------------------------------------------------- queue, ledger, cache

    def queued(self) -> str | None:
        """Why a run is wanted after the present one; None: none is."""
        value = read_json(self._queue)
        return None if value is None else str(value["reason"])

    def queue(self, reason: str | None) -> None:
        if reason is None:
            self._queue.unlink(missing_ok=True)
        else:
            write_json(self._queue, {"reason": reason})

    def paused(self) -> str | None:
        """Why no round may begin; None: one may."""
        value = read_json(self._paused)
        return None if value is None else str(value["reason"])

    def pause(self, reason: str | None) -> None:
        """Let no round begin until this is called with None."""
        if reason is None:
            self._paused.unlink(missing_ok=True)
        else:
            write_json(self._paused, {"reason": reason})

    def note(self, event: Event) -> None:
        """Append a line to the ledger."""
        log = EventLog(self._ledger)
        log(event)
        log.close()

    def history(self) -> list[Event]:
        return read_events(self._ledger)[0]

    def known_shards(self) -> dict[str, SeenShard]:
        """Shards that were read before, by name; {} where the cache is missing or damaged."""
        try:
            value = read_json(self.shards) or {}
            return {name: SeenShard(**fields) for name, fields in value.items()}
        except (json.JSONDecodeError, TypeError):
            return {}

    def keep_shards(self, shards: tuple[SeenShard, ...]) -> None:
        write_json(self.shards, {shard.name: asdict(shard) for shard in shards})


def _round_of(value: dict[str, Any]) -> Round:
    shards = tuple(SeenShard(**shard) for shard in value["shards"])
    return Round(**{**value, "shards": shards})

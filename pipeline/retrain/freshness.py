"""Is a run due: which shards lie under the watched directory or prefix, and which of them no round has seen.

New is by content: a shard that was copied, renamed or touched is not. A shard counts once it has settled
and can be read; what is half written or damaged is named and waits. A schedule is never a reason to train.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import NewDataSettings
from pipeline.config_io import digest_of
from pipeline.data.files import file_reader
from pipeline.data.listing import Entry, list_shards
from pipeline.data.remote import local_copy
from pipeline.data.scan import scan
from pipeline.errors import DataError, UserError
from pipeline.retrain.state import Round, SeenShard, State
from pipeline.train.tensorfile import hash_file

_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies there now. `waiting`: why some shards do not count yet, a sentence each."""

    shards: tuple[SeenShard, ...]
    waiting: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Of the contents, whatever the shards are called."""
        return digest_of(sorted(shard.sha256 for shard in self.shards))


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """Whether a run is due, and why or why not in words."""

    due: bool
    reason: str
    new_samples: int


def look(settings: NewDataSettings, classes: Sequence[str] | None, state: State, now: float) -> Found:
    """The shards that count now; each is read once and remembered by name, size and time.

    Raises:
        UserError: there is no such directory, or it may not be read.
        EnvironmentUnfit: the store that is watched does not answer.
    """
    known, shards, waiting = state.known_shards(), [], []
    names = {name: number for number, name in enumerate(classes or ())}
    for entry in list_shards(settings.watch):
        unsettled = _unsettled(entry, settings.settle_s, now)
        if unsettled is not None:
            waiting.append(f"{entry.name} {unsettled}")
            continue
        before = known.get(entry.name)
        if before is not None and (before.bytes, before.mtime_ns) == (entry.bytes, entry.written_ns or 0):
            shards.append(before)
            continue
        try:
            shards.append(_read(entry, names))
        except (DataError, UserError) as error:  # damaged; compressed
            waiting.append(f"{entry.name} cannot be used: {error.found}")
    if tuple(shards) != tuple(known.values()):
        state.keep_shards(tuple(shards))
    # Two names of one content are one shard: samples must not count twice.
    unique = {shard.sha256: shard for shard in reversed(shards)}
    return Found(shards=tuple(sorted(unique.values(), key=lambda s: s.name)), waiting=tuple(waiting))


def _unsettled(entry: Entry, settle_s: float, now: float) -> str | None:
    """Why a shard may still be written to; None: it has settled."""
    if entry.written_ns is None:
        return "does not say when it was written (settle_s=0 takes it as it is)" if settle_s else None
    age = now - entry.written_ns / 1e9
    return f"changed {max(0, age):.0f} s ago" if age < settle_s else None


def _read(entry: Entry, names: dict[str, int]) -> SeenShard:
    """Its samples and its hash; one of a store is fetched for that, and deleted again."""
    with (
        tempfile.TemporaryDirectory(prefix="vitline-") as directory,
        local_copy(entry.place, Path(directory)) as file,
        file_reader(file) as read_at,
    ):
        samples = len(scan(entry.name, file.stat().st_size, read_at, names).offset)
        sha256 = hash_file(file).sha256
    return SeenShard(entry.name, entry.bytes, entry.written_ns or 0, samples, sha256)


def decide(
    settings: NewDataSettings, found: Found, last: Round | None, now: float | None = None
) -> Freshness:
    """Whether the data that was found makes a run due after the round `last`.

    Raises:
        DataError: shards are gone, and the settings call that a fault.
    """
    now = time.time() if now is None else now
    seen = {shard.sha256: shard for shard in last.shards} if last else {}
    present = {shard.sha256 for shard in found.shards}
    new = sum(shard.samples for shard in found.shards if shard.sha256 not in seen)
    gone = sorted(shard.name for sha256, shard in seen.items() if sha256 not in present)
    if not found.shards:
        return Freshness(due=False, reason=_with(f"no shard in {settings.watch}", found), new_samples=0)
    if gone and settings.on_removed == "fail":
        raise DataError(
            f"{len(gone)} shards of the last round are gone or have other bytes, the first {gone[0]}",
            "shards that stay as they were (retrain.data.on_removed is fail)",
            "bring them back, or set on_removed to retrain or ignore",
        )
    if gone and settings.on_removed == "retrain":
        return Freshness(due=True, reason=f"data rewritten: {gone[0]} is gone or changed", new_samples=new)
    wanted = settings.min_new_samples
    if last is not None:
        wanted = max(wanted, math.ceil(settings.min_new_fraction * last.samples))
    if new >= wanted:
        return Freshness(due=True, reason=_with(f"{new} new samples", found), new_samples=new)
    age = None if last is None or last.ended is None else (now - last.ended) / _DAY_S
    if settings.max_age_days is not None and age is not None and age > settings.max_age_days:
        return Freshness(due=True, reason=f"the last run is {age:.1f} days old", new_samples=new)
    few = f"{new} new samples, fewer than {wanted}"
    return Freshness(due=False, reason=_with(few, found), new_samples=new)


def _with(text: str, found: Found) -> str:
    more = f" and {len(found.waiting) - 1} more" if len(found.waiting) > 1 else ""
    return f"{text}; not counted: {found.waiting[0]}{more}" if found.waiting else text

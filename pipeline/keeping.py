"""Keeps the state of a run at a URL while a driver has it, and takes it up where the last one left it.

    begin    the URL's state, where another machine drove the run last; else this directory's
    passes   every 15 s: what has changed in the run's directory is put there, in this order:
             1. all other files    2. events, as they were before 1.    3. results of jobs
             4. tracking.json, as it was before 1.
    end      one more pass

So what a file says has been done is there before the file is: a job with a result has all its files, a
checkpoint that the events tell of has the ids of its samples, and MLflow was told of nothing that the events
do not hold. A machine that is lost costs what it did since its last pass; that is done again.

The ranks copy checkpoints themselves (pipeline/train/copying.py), to URL/NAME/checkpoints. Not kept: tokens
and logs of Ray, files of the moment. RUN/kept.json says what of this directory is at which URL.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pipeline.config import RunConfig
from pipeline.errors import Busy, EnvironmentUnfit, VitlineError
from pipeline.events import read_events
from pipeline.lease import Lease
from pipeline.remote_state import RemoteState
from pipeline.rundir import JobDir, RunDir, read_json, write_atomic, write_json
from pipeline.train.remote import RemoteCheckpoints

_INTERVAL_S = 15.0
# A pass over many or large files is not begun again before it cost at most so much of the time.
_SHARE = 0.05
# Heartbeats of ranks change all the time; those of the dead say when a rank fell silent.
_STILL_S = 60.0
_LEFT_OUT = re.compile(
    r"(launch|retrain)/.*|lease\.json.*|kept\.json|(.*/)?\..*|jobs/[^/]+/(stop|checkpoints/.*)"
)
_CHECKPOINTS = "checkpoints"

Stamp = tuple[int, int]  # size in bytes, time of change in ns
_GONE = (-1, -1)


def url_of(config: RunConfig) -> str | None:
    """Where the run's state is kept; None: in its directory alone."""
    return None if config.remote is None else f"{config.remote.rstrip('/')}/{config.name}"


def with_checkpoints(config: RunConfig) -> RunConfig:
    """The same run with its checkpoints beside its state, unless they go elsewhere already."""
    url, training = url_of(config), config.pretrain
    if url is None or training.checkpoint.remote is not None:
        return config
    checkpoint = training.checkpoint.model_copy(update={"remote": f"{url}/{_CHECKPOINTS}"})
    return config.model_copy(update={"pretrain": training.model_copy(update={"checkpoint": checkpoint})})


def is_planned_by(name: str) -> bool:
    """Whether a plan is made of this file."""
    return _base(name) in ("job.json", "result.json", RunDir(Path()).report_maker.name)


def is_status(name: str) -> bool:
    """Whether `vitline status` reads it."""
    small = ("job.json", "result.json", "events.jsonl", "tracking.json", "config.resolved.yaml")
    return _base(name) in small or name.endswith(".heartbeat")


class Keeper:
    """Context manager of one driver, which holds `lease` at the same URL.

    Args:
        checkpoints: URL of the ranks' copies.
        warn: told when the store fails, once each time that it does.

    Raises (begin and end):
        EnvironmentUnfit: the store does not answer. The state is in the run's directory all the same.
    """

    def __init__(
        self,
        run: RunDir,
        state: RemoteState,
        lease: Lease,
        checkpoints: str,
        warn: Callable[[str], None],
        interval_s: float = _INTERVAL_S,
    ) -> None:
        self._run, self._state, self._lease = run, state, lease
        self._checkpoints, self._warn = checkpoints, warn
        self._interval_s = interval_s
        self._turn = 0
        self._known: dict[str, Stamp] = {}  # what is there, as it is here
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        there = self._state.turn
        kept = read_json(self._run.kept) or {}
        if kept.get("url") == self._state.url and kept.get("turn") == there:
            self._known = {name: (size, time_ns) for name, (size, time_ns) in kept["files"].items()}
        elif there:
            self._take_over()
        self._turn = there + 1
        self._note()
        self._state.turn = self._turn
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._lease.lost.is_set():
            return  # another driver's now
        try:
            self.keep()
        except VitlineError as fault:
            if error is not None:
                self._warn(fault.found)
                return
            if isinstance(fault, Busy):
                raise
            raise EnvironmentUnfit(
                fault.found,
                f"the end of the run at {self._state.url}",
                f"run the same command here again: {self._run.path} has all of it, and it sends the rest",
            ) from fault

    # ---------------------------------------------------------------- passes

    def keep(self) -> None:
        """One pass.

        Raises:
            EnvironmentUnfit: the store failed; the next pass sends what this one did not.
            Busy: another driver has taken the run over.
        """
        found = dict(_state_files(self._run.path))
        changed = [name for name, stamp in found.items() if self._known.get(name) != stamp]
        gone = [name for name in self._known if name not in found]
        if not changed and not gone:
            return
        self._lease.confirm()
        last = [name for name in changed if name == self._run.tracking.name]
        events = [name for name in changed if _base(name) == "events.jsonl"]
        results = [name for name in changed if _base(name) == "result.json"]
        before = {name: _read(self._run.path / name) for name in (*events, *last)}
        ordered = {*last, *events, *results}
        self._state.upload(self._run.path, [name for name in changed if name not in ordered])
        self._state.write_all({name: before[name] for name in events})
        self._state.upload(self._run.path, results)
        self._state.write_all({name: before[name] for name in last})
        self._state.remove(gone)
        self._known = found
        self._note()

    def _watch(self) -> None:
        failed, wait_s = False, self._interval_s
        while not self._ended.wait(wait_s):
            began = time.monotonic()
            try:
                self.keep()
                failed, wait_s = False, max(self._interval_s, (time.monotonic() - began) / _SHARE)
            except (VitlineError, OSError) as fault:
                if self._lease.lost.is_set():
                    return
                if not failed:
                    found = fault.found if isinstance(fault, VitlineError) else fault
                    self._warn(f"{found}; the run goes on, what is missing there is sent later")
                failed, wait_s = True, self._interval_s

    def _note(self) -> None:
        write_json(self._run.kept, {"url": self._state.url, "turn": self._turn, "files": {**self._known}})

    # ---------------------------------------------------------------- taking over

    def _take_over(self) -> None:
        """Make the run's directory what the URL says. What only this directory knows of a job that others
        went on with is set aside; openings of test splits are kept, whoever made them."""
        openings = _read(self._run.openings)
        everything = self._state.files()
        there = {
            name: stored for name, stored in everything.items() if not name.startswith(f"{_CHECKPOINTS}/")
        }
        same = self._stay({name.split("/")[1] for name in there if name.startswith("jobs/")})
        names = [name for name in there if not (name.startswith("jobs/") and name.split("/")[1] in same)]
        self._state.download(self._run.path, names)
        for name in names:
            # The plan tells of two jobs of one name the newer one by this.
            if (changed := there[name].changed) is not None:
                os.utime(self._run.path / name, (changed, changed))
        _add_lines(self._run.openings, openings)
        self._drop_untold({name.split("/")[1] for name in everything.keys() - there.keys()})
        found = dict(_state_files(self._run.path))
        self._known = {name: found.get(name, _GONE) for name in there if name != self._run.openings.name}

    def _stay(self, digests: set[str]) -> set[str]:
        """Jobs at the URL that are done here, and equal. What is here of others at the URL is set aside."""
        here = {digest for digest in digests if self._run.job(digest).path.exists()}
        results = self._state.read_all([f"jobs/{digest}/result.json" for digest in here])
        same = {
            digest
            for digest in here
            if (result := _read(self._run.job(digest).result))
            and result == results[f"jobs/{digest}/result.json"]
        }
        for digest in here - same:
            self._set_aside(self._run.job(digest))
        return same

    def _set_aside(self, job: JobDir) -> None:
        target = self._run.jobs / ".replaced" / f"{job.path.name}-{time.time_ns()}"
        target.parent.mkdir(exist_ok=True)
        job.path.rename(target)

    def _drop_untold(self, copied: set[str]) -> None:
        """Remove copies of checkpoints that the events kept do not tell of: their samples' ids are lost, and
        a training that resumed from one would leave a hole in its log. One of which no copy is left begins
        anew."""
        for digest in sorted(copied | {path.name for path in self._run.jobs.glob("*")}):
            job = self._run.job(digest)
            if job.result.exists() or list(job.checkpoints.glob("step-*")):
                continue
            told = {e["step"] for e in read_events(job.events)[0] if e["event"] == "checkpoint"}
            copies = RemoteCheckpoints(self._checkpoints, digest)
            found = copies.complete()
            for copy in found:
                if copy.step not in told:
                    copies.remove(copy.name)
            if told and not told & {copy.step for copy in found}:
                self._warn(f"job {digest} was cut short and has no copy of a checkpoint: it begins anew")
                self._set_aside(job)


def _state_files(run: Path) -> Iterator[tuple[str, Stamp]]:
    """Name and stamp of all that is kept; files that go meanwhile are left out."""
    now = time.time()
    for directory, names, files in os.walk(run):
        inside = Path(directory).relative_to(run).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        names[:] = [name for name in names if not _LEFT_OUT.fullmatch(f"{prefix}{name}/x")]
        for name in files:
            if _LEFT_OUT.fullmatch(prefix + name):
                continue
            try:
                found = os.stat(Path(directory, name))
            except FileNotFoundError:
                continue
            if name.endswith(".heartbeat") and now - found.st_mtime < _STILL_S:
                continue
            yield prefix + name, (found.st_size, found.st_mtime_ns)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _add_lines(path: Path, lines: bytes) -> None:
    """Lines that `path` does not hold, at its end."""
    there = _read(path)
    known = set(there.splitlines())
    if missing := [line for line in lines.splitlines() if line not in known]:
        write_atomic(path, there + b"".join(line + b"\n" for line in missing))


def keep(
    config: RunConfig, run: RunDir, state: RemoteState, lease: Lease, warn: Callable[[str], None]
) -> Keeper:
    """The keeper of a run whose settings are `with_checkpoints`."""
    checkpoints: Any = config.pretrain.checkpoint.remote
    return Keeper(run, state, lease, str(checkpoints), warn)

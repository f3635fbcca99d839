"""One pass of the mirror: what the files of a run say, against what was sent; the rest is sent now.

Speaks to a `Store` (pipeline/tracking.py) and knows nothing of MLflow. A store that fails raises `Away`,
and the pass ends there: what was not confirmed is sent by the next one. A store that refuses one thing
for good raises `Refused`, and the pass leaves that job out and goes on.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from pipeline.events import read_events
from pipeline.rundir import RunDir, read_json
from pipeline.tracking_state import (
    STATUS,
    Cursor,
    Point,
    Tracked,
    fingerprints,
    job_params,
    job_tags,
    params,
    points,
    report_points,
    result_points,
)

logger = logging.getLogger(__name__)

# A request that hangs in a server may still come through after its client gave up and made another.
LONGEST_STALL_S = 120.0


class Away(Exception):
    """The store does not answer, or not as it should; later it may."""


class Refused(Exception):
    """The store will never take this one thing."""


class Store(Protocol):
    """What a pass asks for. Times are Unix seconds."""

    experiment: str  # id, once it is open

    def open(self) -> bool: ...
    def has(self, run_id: str) -> bool: ...
    def find_parent(self, key: str) -> str: ...
    def find_child(self, parent_id: str, digest: str) -> str: ...
    def create(self, name: str, started: float, tags: Mapping[str, str]) -> str: ...
    def reopen(self, run_id: str) -> None: ...
    def end(self, run_id: str, status: str, time: float) -> None: ...
    def send(
        self,
        run_id: str,
        found: Sequence[Point] = (),
        values: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        is_new: bool = False,
    ) -> None: ...
    def send_datasets(self, run_id: str, datasets: Sequence[tuple[str, str, str]]) -> None: ...
    def upload(self, run_id: str, path: Path, directory: str) -> None: ...
    def remove_ghosts(self, parent_id: str, key: str, kept: Mapping[str, str]) -> None: ...


class Sender:
    """Holds the cursor of one run and brings the store up to date with it."""

    def __init__(self, run: RunDir, name: str, store: Store, cursor: Cursor) -> None:
        self.run = run
        self.name = name
        self.store = store
        self.cursor = cursor
        self._saved = Cursor("")

    def send_all(self) -> None:
        """One pass.

        Raises:
            Away: the store failed; the cursor holds what was sent before.
        """
        try:
            self._send_all()
        finally:
            # Once a pass: a cursor that lags makes us look before we create and send again what is
            # kept once, no more. After each job it would be megabytes for a thousand jobs.
            if self.cursor != self._saved:
                self._save()

    def _send_all(self) -> None:
        self._read_events()
        if not self.cursor.parent.state:
            return
        if self.store.open():
            self._check_parent()
        self.cursor.experiment = self.store.experiment
        self._send_parent_start()
        for digest in list(self.cursor.jobs):
            if not self.cursor.jobs[digest].is_settled:
                self._send_job(digest)
        if self.cursor.parent.state in STATUS and not self.cursor.parent.is_settled:
            self._send_parent_end()
        if self.cursor.uncertain:
            self._remove_ghosts()

    def _read_events(self) -> None:
        events, self.cursor.offset = read_events(self.run.events, self.cursor.offset)
        for event in events:
            self.cursor.apply(event)

    def _check_parent(self) -> None:
        """Begin anew when the store was wiped or the parent deleted: our files still hold everything."""
        run_id = self.cursor.parent.run_id
        if run_id and not self.store.has(run_id):
            logger.warning("MLflow no longer has the run %s: everything is sent again", self.name)
            self.cursor = Cursor(self.cursor.store)
            self._read_events()

    def _create(self, tracked: Tracked, name: str, tags: Mapping[str, str]) -> None:
        """Make the run of `tracked`. What became of a call that failed is looked up the next time."""
        try:
            tracked.run_id = self.store.create(name, tracked.started, tags)
        except Away:
            self.cursor.uncertain = time.time()
            raise

    def _remove_ghosts(self) -> None:
        kept = {digest: job.run_id for digest, job in self.cursor.jobs.items() if job.run_id}
        self.store.remove_ghosts(self.cursor.parent.run_id, self.cursor.key, kept)
        if time.time() - self.cursor.uncertain > LONGEST_STALL_S:
            self.cursor.uncertain = 0.0

    # ------------------------------------------------------------ the parent

    def _send_parent_start(self) -> None:
        cursor, parent = self.cursor, self.cursor.parent
        tags = {
            "vitline.run": self.name,
            "vitline.stage": "run",
            "vitline.version": cursor.version,
            "vitline.commit": cursor.commit,
            "vitline.attempt": str(cursor.commands),
            "vitline.config_digest": self._config_digest(),
        }
        tags = {key: value for key, value in tags.items() if value}
        parent.run_id = parent.run_id or self.store.find_parent(cursor.key)
        if not parent.run_id:
            # The key must outlive us before a run bears it.
            self._save()
            self._create(parent, self.name, {**tags, "vitline.key": cursor.key})
        if parent.state == "running" and parent.status != "RUNNING":
            self.store.reopen(parent.run_id)
            parent.status = "RUNNING"
        if parent.sent.get("tags") != str(tags):
            settings = yaml.safe_load(self.run.config.read_bytes()) if self.run.config.exists() else {}
            values = params(settings, config_digest=self._config_digest())
            self.store.send(parent.run_id, values=values, tags=tags)
            self._send_file(parent, self.run.config)
            parent.sent["tags"] = str(tags)

    def _send_parent_end(self) -> None:
        parent = self.cursor.parent
        self._send_file(parent, self.run.config)
        for path in sorted(self.run.report.glob("*.*")):
            self._send_file(parent, path, "report")
        prepared = [digest for digest, job in self.cursor.jobs.items() if job.stage == "prepare"]
        # Prepared by an earlier command that was not mirrored: then what the jobs say they read.
        datasets = {
            item for digest in prepared or self.cursor.jobs for item in fingerprints(self.run, digest)
        }
        self.store.send_datasets(parent.run_id, sorted(datasets))
        summary = read_json(self.run.report / "results.json") or {}
        note = (
            {"mlflow.note.content": "\n\n".join(summary["verdicts"][:3])} if summary.get("verdicts") else {}
        )
        self.store.send(parent.run_id, report_points(summary, parent.time), tags=note)
        parent.status = STATUS[parent.state]
        self.store.end(parent.run_id, parent.status, parent.time)
        parent.sent["end"] = parent.end

    def _config_digest(self) -> str:
        config = self.run.config
        return hashlib.sha256(config.read_bytes()).hexdigest()[:16] if config.exists() else ""

    # ------------------------------------------------------------ a job

    def _send_job(self, digest: str) -> None:
        job, parent = self.cursor.jobs[digest], self.cursor.parent
        description = read_json(self.run.job(digest).job) or {}
        tags = job_tags(description, digest, self.name, self.run.job(digest).read_generation())
        if job.replaced:
            self.store.send(job.replaced, tags={"vitline.job": f"{digest} replaced"})
            job.replaced = ""
        job.run_id = job.run_id or self.store.find_child(parent.run_id, digest)
        is_new = not job.run_id
        if is_new:
            self._create(job, job.name, {**tags, "mlflow.parentRunId": parent.run_id})
            job.sent["tags"] = str(tags)
        # Worked on as a copy: a failure half-way leaves the cursor as it was.
        trial = copy.deepcopy(job)
        try:
            self._send_job_files(digest, trial, description, tags, is_new)
        except Refused as error:
            if not self.store.has(parent.run_id):
                raise Away("the parent run is gone") from error
            trial.fault = str(error)
            logger.warning("MLflow refuses %s, which is left out from now on: %s", job.name, error)
        self.cursor.jobs[digest] = trial

    def _send_job_files(
        self,
        digest: str,
        job: Tracked,
        description: Mapping[str, Any],
        tags: Mapping[str, str],
        is_new: bool,
    ) -> None:
        """What is new of one job: its settings once, its events since, its result when it is done."""
        files = self.run.job(digest)
        if job.state == "running" and job.status != "RUNNING":
            self.store.reopen(job.run_id)
            job.status = "RUNNING"
        events, job.offset = read_events(files.events, job.offset)
        found = points(events, job)
        result = files.read_result() if job.state == "done" else None
        if result is not None:
            found += result_points(result, job)
        values = {} if "params" in job.sent else job_params(description, self._config_digest())
        changed = {} if job.sent.get("tags") == str(tags) else tags
        self.store.send(job.run_id, found, values, changed, is_new=is_new)
        job.sent |= {"params": "", "tags": str(tags)}
        if result is not None:
            self.store.send_datasets(job.run_id, fingerprints(self.run, digest))
            self._send_file(job, files.predictions)
        if job.state in STATUS:
            job.status = STATUS[job.state]
            self.store.end(job.run_id, job.status, job.time)
            job.sent["end"] = job.end

    def _send_file(self, tracked: Tracked, path: Path, directory: str = "") -> None:
        """Upload `path` unless just this content was."""
        if not path.exists():
            return
        content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        if tracked.sent.get(path.name) != content:
            self.store.upload(tracked.run_id, path, directory)
            tracked.sent[path.name] = content

    def _save(self) -> None:
        self.cursor.save(self.run.tracking)
        self._saved = copy.deepcopy(self.cursor)

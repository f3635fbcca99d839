"""Mirrors a run into MLflow. The event logs are the truth; MLflow may be slow, away or wiped.

    RUN/events.jsonl, jobs/*/events.jsonl, job.json, result.json
        └─► Sender (tracking_pass.py) with its Cursor (tracking_state.py) ─► MlflowStore ─► MLflow
    parent run = the vitline run        child run = a job, found by its tag vitline.job

One thread of the driver writes; nobody waits for it. What a store that is away missed is sent later with
the steps and times of the events. This is the only module that imports mlflow, and it uses explicit run
ids only: MLflow's active run is global to the process and nobody's here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import TrackingSettings
from pipeline.rundir import RunDir
from pipeline.tracking_pass import Away, Refused, Sender
from pipeline.tracking_state import Cursor, Point
from pipeline.tracking_uri import alone, artifact_location, check_uri

# Read by mlflow when it is imported, or when it makes a request.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
# A retry inside the client would repeat a create call whose answer was lost, and leave a ghost run
# (mlflow#8238). We look before we create, so the retries are ours.
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

with warnings.catch_warnings():
    # mlflow 3.17 with sqlalchemy 2.1 warns when its tables are mapped: once, here, not in our thread.
    warnings.simplefilter("ignore")
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    from mlflow import MlflowClient
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

for _name in ("mlflow", "alembic"):
    # Their faults come to us as exceptions; their own lines would tear the progress display.
    logging.getLogger(_name).setLevel(logging.CRITICAL)

logger = logging.getLogger(__name__)

INTERVAL_S = 2.0
LONGEST_PAUSE_S = 60.0
# From its list of experiments MLflow's page opens others as traces of language models.
_KIND = {"mlflow.experimentKind": "custom_model_development"}
_MOST_METRICS, _MOST_PARAMS = 1000, 100  # MLflow's limits for one call
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}


class Mirror:
    """Sends what a run's files say to MLflow, in a thread, for as long as the driver lives.

    Args:
        run: the run directory.
        settings: where to; the default is SQLite beside the runs.
        name: of the parent run.

    Raises:
        UserError: an address that cannot be used.
    """

    def __init__(self, run: RunDir, settings: TrackingSettings, *, name: str) -> None:
        self.uri = settings.uri or f"sqlite:///{(run.path.parent / 'mlflow.db').absolute()}"
        check_uri(self.uri)
        self._store = MlflowStore(self.uri, settings.experiment)
        self._sender = Sender(run, name, self._store, Cursor.load(run.tracking, self.uri))
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._deadline = 0.0
        self._sent_all = False
        self._said = ""
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Follow the run's files from now on."""
        self._thread.start()

    def sync(self) -> bool:
        """One pass over all files; whether everything has arrived. Raises nothing that is foreseen."""
        with self._lock:
            try:
                self._sender.send_all()
                self._sent_all, self._said = True, ""
            except (Away, Refused, OSError) as error:
                self._sent_all = False
                self._store.forget()
                message = f"MLflow at {self.uri}: {error}"
                if message != self._said:
                    logger.warning("%s; training goes on, what is missing is sent later", message)
                self._said = message
            return self._sent_all

    def close(self, timeout_s: float) -> bool:
        """Send what is left, for at most `timeout_s`; whether all arrived.

        To be called after the last event was written. What is left then, the next command sends.
        """
        if self._thread.ident is None:
            return self.sync()
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._thread.join(timeout_s)
        return self._sent_all and not self._thread.is_alive()

    def url(self, digest: str | None = None) -> str | None:
        """Page of a job's run, or of the parent; None where no server shows it, or before it is there."""
        cursor = self._sender.cursor
        tracked = cursor.parent if digest is None else cursor.jobs.get(digest)
        if tracked is None or not tracked.run_id or not self.uri.startswith("http"):
            return None
        return f"{self.uri.rstrip('/')}/#/experiments/{self._store.experiment}/runs/{tracked.run_id}"

    def _follow(self) -> None:
        pause = INTERVAL_S
        while not self._closing.wait(pause):
            pause = INTERVAL_S if self._sync_guarded() else min(2 * pause, LONGEST_PAUSE_S)
            # Many drivers that lost one server must not come back in step.
            pause *= random.uniform(0.8, 1.0)
        while not self._sync_guarded() and time.monotonic() < self._deadline:
            time.sleep(INTERVAL_S / 2)

    def _sync_guarded(self) -> bool:
        try:
            return self.sync()
        except Exception:
            # A fault of ours here must not reach the training; it is logged and tried again.
            logger.exception("mirroring to MLflow failed; training goes on")
            self._sent_all = False
            return False


class MlflowStore:
    """The calls of MLflow that the mirror makes; its faults come out as `Away` or `Refused`.

    Args:
        uri: of the tracking store.
        name: of the experiment; made when it is not there.
    """

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri
        self.name = name
        self.experiment = ""
        self._client: Any = None
        self._children: dict[str, str] | None = None

    def open(self) -> bool:
        """Connect; True when that was needed, and what was known of the store may no longer hold."""
        if self.experiment:
            return False
        with _translated(), alone(self.uri):
            self._client = MlflowClient(tracking_uri=self.uri)
            found = self._client.get_experiment_by_name(self.name)
            place = artifact_location(self.uri)
            self.experiment = (
                found.experiment_id
                if found is not None
                else self._client.create_experiment(self.name, artifact_location=place, tags=_KIND)
            )
        return True

    def forget(self) -> None:
        """After a fault: look again at what is there."""
        self.experiment, self._children = "", None

    def has(self, run_id: str) -> bool:
        """Whether the run is there and not deleted."""
        with _translated():
            try:
                return str(self._client.get_run(run_id).info.lifecycle_stage) == "active"
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return False
                raise

    def find_parent(self, key: str) -> str:
        return next((run_id for _, run_id in self._search(f"tags.vitline.key = '{key}'")), "")

    def find_child(self, parent_id: str, digest: str) -> str:
        """Run id of a job's run, "" when it has none. All children are asked for at once, and kept:
        this driver is the only writer."""
        if self._children is None:
            self._children = dict(reversed(self._search(f"tags.mlflow.parentRunId = '{parent_id}'")))
        return self._children.get(digest, "")

    def create(self, name: str, started: float, tags: Mapping[str, str]) -> str:
        with _translated():
            info = self._client.create_run(
                self.experiment, start_time=round(1000 * started), tags=dict(tags), run_name=name
            ).info
        return str(info.run_id)

    def reopen(self, run_id: str) -> None:
        with _translated():
            self._client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str, time: float) -> None:
        with _translated():
            self._client.set_terminated(run_id, status, end_time=round(1000 * time))

    def send(
        self,
        run_id: str,
        found: Sequence[Point] = (),
        values: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        """Metrics, parameters and tags, in as few calls as MLflow allows.

        A parameter can be set once only: what is there stays. A run that `is_new` has none yet.
        """
        metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in found]
        marks = [RunTag(key, value) for key, value in (tags or {}).items()]
        if tags and "vitline.job" in tags:
            self._children = None
        with _translated():
            known = self._client.get_run(run_id).data.params if values and not is_new else {}
            fresh = [Param(key, value) for key, value in (values or {}).items() if key not in known]
            if metrics or fresh or marks:
                first = metrics[:_MOST_METRICS]
                self._client.log_batch(run_id, metrics=first, params=fresh[:_MOST_PARAMS], tags=marks)
            for start in range(_MOST_METRICS, len(metrics), _MOST_METRICS):
                self._client.log_batch(run_id, metrics=metrics[start : start + _MOST_METRICS])

    def send_datasets(self, run_id: str, datasets: Sequence[tuple[str, str, str]]) -> None:
        """Inputs of a run: (name, fingerprint, context) each."""
        inputs = [
            DatasetInput(
                # 36 characters is the most that MLflow takes; 32 hex digits identify as well.
                MetaDataset(CodeDatasetSource({"vitline": name}), name, print_[:32])._to_mlflow_entity(),
                [InputTag("mlflow.data.context", context)],
            )
            for name, print_, context in datasets
        ]
        with _translated():
            if inputs:
                self._client.log_inputs(run_id, datasets=inputs)

    def upload(self, run_id: str, path: Path, directory: str) -> None:
        with _translated():
            self._client.log_artifact(run_id, str(path), directory or None)

    def remove_ghosts(self, parent_id: str, key: str, kept: Mapping[str, str]) -> None:
        """Delete runs that a lost answer made us create twice."""
        parents = [run_id for _, run_id in self._search(f"tags.vitline.key = '{key}'")]
        children = self._search(f"tags.mlflow.parentRunId = '{parent_id}'")
        ghosts = [run_id for run_id in parents if run_id != parent_id]
        ghosts += [run_id for digest, run_id in children if kept.get(digest, run_id) != run_id]
        with _translated():
            for run_id in ghosts:
                self._client.delete_run(run_id)

    def _search(self, condition: str) -> list[tuple[str, str]]:
        """(job digest or "", run id) of all runs that meet `condition`, the oldest first."""
        found, token = [], None
        with _translated():
            while True:
                page = self._client.search_runs(
                    [self.experiment], condition, order_by=["attributes.start_time ASC"], page_token=token
                )
                found += [(run.data.tags.get("vitline.job", ""), run.info.run_id) for run in page]
                token = page.token
                if not token:
                    return found


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        kind = Refused if error.error_code in _REFUSALS else Away
        raise kind(_first_line(error)) from error
    except (SQLAlchemyError, OSError) as error:
        raise Away(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__

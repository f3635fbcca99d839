"""Runs read back from MLflow alone, as directories that look like those they were mirrored from.

    parent run ── artifact report/jobs.json      every job behind the last comparison, with its result
               ── artifact config.resolved.yaml
    child runs ── artifact predictions.parquet   found by the tag vitline.job = DIGEST
                        └─► INTO/ID8/NAME/{config.resolved.yaml, openings.jsonl, jobs/DIGEST/…}

So a comparison of runs of other machines is the same code as one of run directories.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.rundir import RunDir, read_json, write_json
from pipeline.tracking_pass import Away, Refused
from pipeline.tracking_uri import check_uri

# isort: split
# After this one, which sets what mlflow reads when it is imported.
import pipeline.tracking  # noqa: F401

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

_DIGEST = re.compile(r"[0-9a-f]{16}")


def is_absent(error: MlflowException) -> bool:
    """Whether the store answered that there is no such thing."""
    return error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@contextmanager
def answering(store: str, do: str) -> Iterator[None]:
    """Inside, a store that does not answer, or refuses, raises EnvironmentUnfit.

    Args:
        store: what it is, as the message begins. do: what its reader can do.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, Away, Refused) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise EnvironmentUnfit(f"{store}: {first}", "a store that answers", do) from error


class TrackedRuns:
    """The runs of one experiment of a tracking store; nothing is changed there.

    Raises (every method):
        EnvironmentUnfit: the store does not answer.
        UserError: what was asked for is not there.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        check_uri(uri)
        self.uri, self.experiment = uri, experiment
        with self._answering():
            # Opening makes the tables of a fresh SQLite store: a store that is not there is not to be made.
            if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
                raise UserError(
                    f"no tracking store at {uri}",
                    "the store that the runs were mirrored to",
                    "name it with --tracking, as sqlite:///runs/mlflow.db or http://HOST:5000",
                )
            self._client: Any = MlflowClient(tracking_uri=uri)

    def finished(self) -> list[str]:
        """Ids of all finished runs of the experiment, the newest first."""
        with self._answering():
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                raise UserError(
                    f"no experiment {self.experiment!r} at {self.uri}",
                    "one that runs were mirrored to: tracking.experiment",
                    "name it with --experiment, or another store with --tracking",
                )
            condition = "tags.vitline.stage = 'run' and attributes.status = 'FINISHED'"
            ids, token = [], None
            while True:
                order = ["attributes.start_time DESC"]
                page = self._client.search_runs(
                    [found.experiment_id], condition, order_by=order, page_token=token
                )
                ids += [str(run.info.run_id) for run in page]
                token = page.token
                if not token:
                    return ids

    def at_alias(self, name: str, alias: str) -> str:
        """Id of the run that the registered model `name` at `alias` is from."""
        with self._answering():
            try:
                version = self._client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if not is_absent(error):
                    raise
                raise UserError(
                    f"no model {name!r} with the alias {alias!r} at {self.uri}",
                    "a registered model, as `vitline retrain` registers them",
                    "see the Models page of MLflow",
                ) from None
            return str(version.run_id)

    def fetch(self, run_id: str, into: Path) -> Path:
        """Download what a comparison needs of a run, or of the parent of a job's run; its directory."""
        with self._answering():
            try:
                run = self._client.get_run(run_id)
                parent = run.data.tags.get("mlflow.parentRunId")
                run = self._client.get_run(parent) if parent else run
            except MlflowException as error:
                if not is_absent(error):
                    raise
                raise UserError(
                    f"no run {run_id!r}, neither a directory nor at {self.uri}",
                    "a run's directory, an id of MLflow, latest or NAME@ALIAS",
                    "check it, or name another store with --tracking",
                ) from None
            name = run.data.tags.get("vitline.run") or run.info.run_name or "run"
            directory = RunDir(into / run.info.run_id[:8] / re.sub(r"[^\w.-]", "_", name))
            self._download(run, directory)
            return directory.path

    def _download(self, run: Any, directory: RunDir) -> None:
        run_id = run.info.run_id
        listed = {file.path for file in self._client.list_artifacts(run_id, "report")}
        if "report/jobs.json" not in listed:
            raise UserError(
                f"the run {run_id} at {self.uri} has no report/jobs.json",
                "a run that came to its comparison, mirrored by this version of vitline",
                "finish it: the same vitline run",
            )
        directory.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            told = read_json(Path(self._client.download_artifacts(run_id, "report/jobs.json", temporary)))
            assert told is not None, "it was downloaded"
            settings = self._client.download_artifacts(run_id, "config.resolved.yaml", temporary)
            shutil.copy(settings, directory.config)
        directory.openings.write_text("".join(json.dumps(line) + "\n" for line in told["openings"]))
        evaluated = []
        for digest, job in told["jobs"].items():
            # It becomes a path: whoever may write to the store must not choose where we write.
            if not _DIGEST.fullmatch(digest):
                raise UserError(
                    f"a job named {digest!r} in report/jobs.json of run {run_id}",
                    "16 hexadecimal digits",
                    "do not compare this run: something else wrote it",
                )
            write_json(directory.job(digest).job, job["job"])
            write_json(directory.job(digest).result, job["result"])
            if job["job"]["stage"] == "evaluate":
                evaluated.append(digest)
        self._predictions(run, directory, evaluated)

    def _predictions(self, run: Any, directory: RunDir, digests: list[str]) -> None:
        for digest in digests:
            condition = f"tags.mlflow.parentRunId = '{run.info.run_id}' and tags.vitline.job = '{digest}'"
            children = self._client.search_runs([run.info.experiment_id], condition, max_results=1)
            if not children:
                raise UserError(
                    f"the run {run.info.run_id} at {self.uri} has no run of its job {digest}",
                    "one for each evaluation: it was deleted, or is still being sent",
                    "run the same vitline run again, which sends what is missing",
                )
            self._client.download_artifacts(
                children[0].info.run_id, "predictions.parquet", str(directory.job(digest).path)
            )

    def _answering(self) -> AbstractContextManager[None]:
        return answering(f"MLflow at {self.uri}", "see that it runs, or name another with --tracking")

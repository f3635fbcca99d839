"""MLflow's model registry: versions, their evidence in tags, and the aliases that say which one is in use.

    champion     in use: models:/NAME@champion        previous    the one before, for a rollback
    challenger   registered last, and judged

A version's source is runs:/RUN/model: our safetensors with the code that serves them
(pipeline/tracking_model.py), a signature, no pickle. Aliases have no compare-and-set: they are moved by one
tick at a time only, under its lease and after its fencing check, and read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from model.weights.files import read_tensors
from pipeline import tracking
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.rundir import RunDir
from pipeline.tracking_runs import answering, is_absent
from pipeline.tracking_state import Cursor
from pipeline.tracking_uri import check_uri
from pipeline.train.tensorfile import hash_file

# Its bars for one small file would tear our lines.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

# isort: split
# After pipeline.tracking, which sets what mlflow reads when it is imported.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.pyfunc
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, DataType, Schema

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Version:
    """One version of the registered model. `tags` without their prefix `vitline.`."""

    number: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def blocked(self) -> str | None:
        """Why it must not be promoted; None: it may."""
        return self.tags.get("blocked")


class Registry:
    """One registered model of a tracking store.

    Args:
        uri: of the store.
        experiment: in which a run is made for a version that has none.
        name: of the registered model.

    Raises (every method):
        EnvironmentUnfit: the store does not answer, or refuses.
    """

    def __init__(self, uri: str, experiment: str, name: str) -> None:
        check_uri(uri)
        self.uri, self.name = uri, name
        self._store = tracking.MlflowStore(uri, experiment)
        with self._answering():
            # It makes the tables of a fresh SQLite store, one process at a time.
            self._store.open()
            self._client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def at(self, alias: str) -> Version | None:
        """The version that an alias stands at; None: at none."""
        with self._answering():
            try:
                return _version(self._client.get_model_version_by_alias(self.name, alias))
            except MlflowException as error:
                # The model, or the alias, does not exist yet.
                if is_absent(error):
                    return None
                raise

    def version(self, number: str) -> Version:
        """Raises UserError where there is no such version."""
        found = {version.number: version for version in self.versions()}
        if number not in found:
            known = ", ".join(found) or "none"
            raise UserError(f"no version {number} of {self.name}", f"one of: {known}", "name one of these")
        return found[number]

    def versions(self) -> list[Version]:
        """All of them, the oldest first."""
        with self._answering():
            found, token = [], None
            while True:
                page = self._client.search_model_versions(f"name='{self.name}'", page_token=token)
                found += [_version(item) for item in page]
                token = page.token
                if not token:
                    return sorted(found, key=lambda version: int(version.number))

    def register(self, key: str, run: RunDir, weights: Path, tags: Mapping[str, str], note: str) -> Version:
        """A version for the weights of a round, once: the same `key` gives the version that is there.

        Args:
            run: whose MLflow run the version belongs to, where it was mirrored.
            tags: without their prefix. note: the version's description.
        """
        present = next((version for version in self.versions() if version.tags.get("key") == key), None)
        if present is not None:
            return present
        with self._answering(), tempfile.TemporaryDirectory() as directory:
            run_id = self._run_of(key, run)
            _save_model(weights, Path(directory) / "model")
            self._client.log_artifacts(run_id, str(Path(directory) / "model"), "model")
            with contextlib.suppress(MlflowException):  # it is there
                self._client.create_registered_model(self.name)
            every = {"key": key, "weights": hash_file(weights).sha256, **tags}
            made = self._client.create_model_version(
                self.name,
                f"runs:/{run_id}/model",
                run_id,
                tags={f"vitline.{name}": value for name, value in every.items()},
                description=note,
            )
            return _version(made)

    def move(self, alias: str, number: str) -> None:
        """Set an alias and read it back."""
        with self._answering():
            self._client.set_registered_model_alias(self.name, alias, number)
        found = self.at(alias)
        if found is None or found.number != number:
            raise EnvironmentUnfit(
                f"{self.name}@{alias} was set to {number} and stands at {found.number if found else None}",
                "the version that was set: something else moves this alias too",
                "let one scheduler look after a model; then run the same command again",
            )

    def tag(self, number: str, **tags: str) -> None:
        with self._answering():
            for name, value in tags.items():
                self._client.set_model_version_tag(self.name, number, f"vitline.{name}", value)

    def untag(self, number: str, tag: str) -> None:
        """Remove a tag, where it is set."""
        if tag in self.version(number).tags:
            with self._answering():
                self._client.delete_model_version_tag(self.name, number, f"vitline.{tag}")

    def upload(self, version: Version, file: Path) -> None:
        """Keep a file with the version's run."""
        with self._answering():
            self._client.log_artifact(version.run_id, str(file))

    def fetch_weights(self, version: Version, directory: Path) -> Path:
        """The weights file of a version, in `directory`; fetched once, checked against its tag."""
        file = directory / _WEIGHTS
        if not (file.is_file() and hash_file(file).sha256 == version.tags.get("weights")):
            directory.mkdir(parents=True, exist_ok=True)
            with self._answering():
                got = self._client.download_artifacts(
                    version.run_id, f"model/artifacts/{_WEIGHTS}", str(directory)
                )
            Path(got).replace(file)
        if hash_file(file).sha256 != version.tags.get("weights"):
            raise EnvironmentUnfit(
                f"the weights of {self.name} version {version.number} are not those that were registered",
                f"SHA-256 {version.tags.get('weights')}",
                "look who writes to the artifact store; `vitline rollback` goes back to another version",
            )
        return file

    def _run_of(self, key: str, run: RunDir) -> str:
        """The mirrored parent run of a run directory, or one that is made for the version."""
        mirrored = Cursor.load(run.tracking, self.uri).parent.run_id
        if mirrored and self._store.has(mirrored):
            return mirrored
        made = self._store.find_parent(key)
        return made or self._store.create(run.path.name, time.time(), {"vitline.key": key})

    def _answering(self) -> contextlib.AbstractContextManager[None]:
        return answering(
            f"MLflow's registry at {self.uri}",
            "see that it runs; the next tick goes on where this one ended",
        )


def _version(found: Any) -> Version:
    tags = {key.removeprefix("vitline."): value for key, value in found.tags.items()}
    return Version(str(found.version), str(found.run_id), tags)


def _save_model(weights: Path, directory: Path) -> None:
    """An MLflow model of code and safetensors."""
    _, header = read_tensors(weights)
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.long, "index"),
                ColSpec(DataType.double, "score"),
            ]
        ),
    )
    with warnings.catch_warnings():
        # It would fill in what the signature says already.
        warnings.filterwarnings("ignore", message=".*An input example was not provided")
        mlflow.pyfunc.save_model(
            str(directory),
            python_model=str(Path(__file__).with_name("tracking_model.py")),
            artifacts={"weights": weights.absolute().as_uri()},
            signature=signature,
            # Without these MLflow would load the model to see what it imports.
            pip_requirements=[f"vitline=={metadata.version('vitline')}"],
            metadata={"classes": len(json.loads(header.get("classes", "[]")))},
        )

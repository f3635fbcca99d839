"""`vitline compare` from MLflow alone: the run directories are gone."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from launch.cli import app
from pipeline.config import TrackingSettings
from pipeline.errors import UserError
from pipeline.report.build import build
from pipeline.tracking import Mirror
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run


class Store:
    """Two mirrored runs, `weak` (the older) and `strong`; `table` is what their directories compare to."""

    def __init__(self, root: Path) -> None:
        self.uri = f"sqlite:///{root}/mlflow.db"
        self.made = {
            name: self._make(root, name, share, place)
            for place, (name, share) in enumerate((("weak", 0.6), ("strong", 0.8)))
        }
        self.table = self.compare("--json", *(str(made.run.path) for made in self.made.values()))
        client = MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name("vitline")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.vitline.stage = 'run'")
        self.ids = {run.data.tags["vitline.run"]: run.info.run_id for run in found}
        self.client = client
        for made in self.made.values():
            shutil.rmtree(made.run.path)

    def _make(self, root: Path, name: str, share: float, place: int) -> SyntheticRun:
        config = synthetic_config(root / "runs", name=name)
        plain = config.model_dump(mode="json")
        plain["transfer"] |= {"datasets": ["digits"], "seeds": [0]}
        made = write_synthetic_run(type(config).model_validate(plain), accuracy=lambda *_: share, images=200)
        # Started one after the other, so that there is a latest.
        text = made.run.events.read_text().replace("1700000", f"17{place}0000")
        made.run.events.write_text(text)
        build(made.run, made.config.model_dump(mode="json"), made.digests)
        assert Mirror(made.run, TrackingSettings(uri=self.uri), name=name).sync()
        return made

    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["compare", *arguments, "--tracking", self.uri])

    def compare(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return str(result.stdout)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_ids_give_what_the_directories_gave(store: Store) -> None:
    assert store.compare("--json", store.ids["weak"], store.ids["strong"]) == store.table
    pair = json.loads(store.table)["pairs"][0]
    assert (pair["challenger"], pair["baseline"], pair["verdict"]) == ("strong", "weak", "better")


def test_a_job_of_a_run_stands_for_the_run(store: Store) -> None:
    experiment = store.client.get_experiment_by_name("vitline")
    assert experiment is not None
    child = store.client.search_runs(
        [experiment.experiment_id], f"tags.mlflow.parentRunId = '{store.ids['strong']}'"
    )[0]
    assert store.compare("--json", store.ids["weak"], child.info.run_id) == store.table


def test_an_experiment_is_all_its_finished_runs_and_latest_the_newest(store: Store) -> None:
    whole = store.compare("--json", "--experiment", "vitline", "--baseline", store.ids["weak"])
    assert json.loads(whole)["pairs"] == json.loads(store.table)["pairs"]
    newest = store.compare("--json", "latest", "--baseline", store.ids["weak"])
    assert json.loads(newest)["pairs"] == json.loads(store.table)["pairs"]


def test_a_model_at_an_alias_is_its_run(store: Store) -> None:
    store.client.create_registered_model("house")
    made = store.client.create_model_version("house", "runs:/x/model", store.ids["strong"])
    store.client.set_registered_model_alias("house", "champion", made.version)
    assert store.compare("--json", store.ids["weak"], "house@champion") == store.table


def test_cost_columns_hold_operations_and_device_hours(store: Store) -> None:
    row = next(csv.DictReader(io.StringIO(store.compare("--csv", *store.ids.values()))))
    # Two devices for 120 s, then one for 20 s thrice: two choices and a training.
    assert float(row["device_hours"]) == pytest.approx((2 * 120 + 3 * 20) / 3600)
    assert float(row["exaflops"]) > 0


@pytest.mark.parametrize(
    ("baseline", "margin", "code"),
    [("weak", "0", 0), ("strong", "0", 6), ("strong", "15", 6), ("strong", "25", 0)],
)
def test_fail_if_worse_is_about_what_was_shown(store: Store, baseline: str, margin: str, code: int) -> None:
    arguments = [*store.ids.values(), "--baseline", store.ids[baseline], "--fail-if-worse", margin, "--json"]
    result = store.run(*arguments)
    assert json.loads(result.stdout)["pairs"], "the table is printed in any case"
    assert getattr(result.exception, "exit_code", result.exit_code) == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["0123456789abcdef0123456789abcdef", "latest"], "no run '0123"),
        (["nobody@champion", "latest"], "no model 'nobody'"),
        (["latest", "--experiment", "none"], "no experiment 'none'"),
        ([], "--experiment NAME"),
    ],
)
def test_what_is_not_there_is_said(store: Store, arguments: list[str], message: str) -> None:
    error = store.run(*arguments).exception
    assert isinstance(error, UserError)
    assert message in str(error)


def test_what_somebody_wrote_into_the_store_chooses_no_path(store: Store, tmp_path: Path) -> None:
    run_id = store.client.create_run("0", tags={"vitline.run": "../../evil"}).info.run_id
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps({"jobs": {"../../../up": {"job": {}, "result": {}}}, "openings": []}))
    store.client.log_artifact(run_id, str(file), "report")
    (tmp_path / "config.resolved.yaml").write_text("name: x\n")
    store.client.log_artifact(run_id, str(tmp_path / "config.resolved.yaml"))
    error = store.run(run_id, "latest").exception
    assert isinstance(error, UserError)
    assert "16 hexadecimal digits" in str(error)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = CliRunner().invoke(app, ["compare", "latest", "--tracking", uri])
    assert isinstance(result.exception, UserError)
    assert list(tmp_path.iterdir()) == []

"""The mirror on a real MLflow server, through a proxy that fails, loses answers and stalls."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from launch.doctor_together import tracking
from pipeline.config import RunConfig, TrackingSettings
from pipeline.tracking import Mirror
from tests.helpers.mlflow_server import FlakyProxy, mlflow_server
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    # Seconds where a user has ten: the test waits for time-outs.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr("pipeline.tracking.INTERVAL_S", 0.1)
    monkeypatch.setattr("pipeline.tracking.LONGEST_PAUSE_S", 0.5)
    proxy = FlakyProxy(server)
    yield proxy
    proxy.close()


@pytest.fixture
def made(tmp_path: Path) -> SyntheticRun:
    plain = synthetic_config(tmp_path).model_dump(mode="json")
    plain["transfer"] |= {"datasets": ["digits"], "seeds": [0], "starts": ["pretrained"]}
    made = write_synthetic_run(RunConfig.model_validate(plain), images=20)
    made.run.report.mkdir()
    (made.run.report / "report.html").write_text("<p>report</p>")
    return made


def mirror(made: SyntheticRun, url: str, request: pytest.FixtureRequest) -> Mirror:
    """To an experiment of the test's own."""
    settings = TrackingSettings(uri=url, experiment=request.node.name)
    return Mirror(made.run, settings, name="synthetic")


def runs_of(server: str, experiment: str) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=server)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = list(client.search_runs([found.experiment_id], max_results=1000))
    named = {run.info.run_name: run for run in runs}
    assert len(named) == len(runs), f"ghosts: {sorted(run.info.run_name for run in runs)}"
    return named


def check_complete(made: SyntheticRun, server: str, experiment: str) -> None:
    """One parent, one child a job, all finished, with every step at its own time."""
    runs = runs_of(server, experiment)
    assert sorted(runs) == sorted(["synthetic", *made.digests])
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    client = MlflowClient(tracking_uri=server)
    pretrain = runs["pretrain"]
    history = client.get_metric_history(pretrain.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(10, 301, 10))
    assert history[0].timestamp == pretrain.info.start_time + 120_000 * 10 // 300
    artifacts = [file.path for file in client.list_artifacts(runs["synthetic"].info.run_id)]
    assert artifacts == ["config.resolved.yaml", "report"]


def test_everything_arrives(made: SyntheticRun, server: str, request: pytest.FixtureRequest) -> None:
    sent = mirror(made, server, request)
    assert sent.sync()
    check_complete(made, server, request.node.name)
    url = sent.url(made.digests["pretrain"])
    assert url is not None
    assert url.startswith(f"{server}/#/experiments/")
    assert url.endswith(runs_of(server, request.node.name)["pretrain"].info.run_id)
    assert sent.url("unknown") is None


def test_a_server_that_does_not_know_its_name_is_told_from_a_refusal(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *more: Any, **named: Any) -> Any:
        return real("127.0.0.1" if host == "mlflow.example.org" else host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    name = server.replace("http://127.0.0.1", "mlflow.example.org")
    check = tracking(TrackingSettings(uri=f"http://{name}"), tmp_path)
    assert (check.level, check.found) == ("warn", f"http://{name} answers with 403")
    assert f"start it with --allowed-hosts {name},localhost,127.0.0.1" in check.do
    assert tracking(TrackingSettings(uri=server), tmp_path).level == "pass"


def test_down_from_the_start(
    made: SyntheticRun, server: str, proxy: FlakyProxy, request: pytest.FixtureRequest
) -> None:
    proxy.mode = "503"
    sent = mirror(made, proxy.url, request)
    sent.start()
    wait_for_requests(proxy, 3)
    proxy.mode = "pass"
    assert sent.close(60)
    check_complete(made, server, request.node.name)


def test_down_in_the_middle(
    made: SyntheticRun, server: str, proxy: FlakyProxy, request: pytest.FixtureRequest
) -> None:
    sent = mirror(made, proxy.url, request)
    sent.start()
    for after in (5, 4, 7):
        wait_for_requests(proxy, after)
        proxy.mode = "503"
        wait_for_requests(proxy, 2)
        proxy.mode = "pass"
    assert sent.close(60)
    check_complete(made, server, request.node.name)


@pytest.mark.parametrize("mode", ["lose", "stall"])
def test_a_create_call_without_an_answer_leaves_no_ghost(
    made: SyntheticRun, server: str, proxy: FlakyProxy, request: pytest.FixtureRequest, mode: str
) -> None:
    """Lost: the run is there and must be found. Stalled: it comes to be after another was made."""
    proxy.mode, proxy.only, proxy.faults = mode, "runs/create", 3
    sent = mirror(made, proxy.url, request)
    deadline = time.monotonic() + 60
    while not sent.sync():
        assert time.monotonic() < deadline
    assert proxy.faults == 0
    time.sleep(proxy.stall_s if mode == "stall" else 0)
    # The next pass, maybe of the next command, clears up.
    assert mirror(made, proxy.url, request).sync()
    check_complete(made, server, request.node.name)


def wait_for_requests(proxy: FlakyProxy, count: int) -> None:
    seen, deadline = proxy.requests, time.monotonic() + 30
    while proxy.requests < seen + count:
        assert time.monotonic() < deadline, f"only {proxy.requests - seen} of {count} requests came"
        time.sleep(0.002)


def test_nobody_waits_for_a_server_that_stalls(
    made: SyntheticRun, proxy: FlakyProxy, request: pytest.FixtureRequest
) -> None:
    proxy.mode, proxy.stall_s = "stall", 3600.0
    sent = mirror(made, proxy.url, request)
    sent.start()
    assert not sent.close(0.5)  # who waited here would not come back within the hour


def test_the_next_command_sends_what_was_missed(
    made: SyntheticRun, server: str, proxy: FlakyProxy, request: pytest.FixtureRequest
) -> None:
    proxy.mode = "503"
    assert not mirror(made, proxy.url, request).sync()
    assert not mirror(made, proxy.url, request).sync()
    proxy.mode = "pass"
    assert mirror(made, proxy.url, request).sync()
    check_complete(made, server, request.node.name)

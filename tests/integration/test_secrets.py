"""A planted secret is searched for in everything that a run has written."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.helpers.canary import CANARY, files_with

SMALL = Path(__file__).parent / "small.yaml"

pytestmark = pytest.mark.ray


def test_secrets_of_the_environment_are_written_nowhere(finished_run: Path, home: Path) -> None:
    """Run directory, its logs and reports, MLflow's store and artifacts, what was printed, the home."""
    root = finished_run.parent
    written = {path.name for path in root.rglob("*")}
    assert {"mlflow.db", "report.html", "config.resolved.yaml", "rank-00000.log", "events.jsonl"} <= written
    assert files_with(CANARY, root, home) == []
    # The search itself would find it.
    (root / "planted").write_text(CANARY)
    assert files_with(CANARY, root) == [str(root / "planted")]
    (root / "planted").unlink()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("tracking.uri=https://host/?token={}", "tracking.uri"),
        (
            "datasets.web={{source: webdataset, train: 'https://me:{}@host/a.tar', test: b.tar}}",
            "datasets.web.train",
        ),
    ],
)
def test_a_key_in_a_url_is_refused_and_neither_shown_nor_written(
    vitline: Callable[..., Any], tmp_path: Path, override: str, key: str
) -> None:
    command = vitline("run", str(SMALL), f"root={tmp_path}", override.format(CANARY))
    assert command.wait() == 2
    assert f"credentials in the URL of {key}" in command.text
    assert CANARY not in command.text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rays_own_logs_hold_neither_secrets_nor_its_token(
    vitline: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that is killed: one that ends takes Ray's directory away."""
    # Ray's sockets lie in it, whose paths may be 107 characters long.
    with tempfile.TemporaryDirectory(prefix="vl", ignore_cleanup_errors=True) as place:
        monkeypatch.setenv("TMPDIR", place)
        command = vitline("run", str(SMALL), f"root={tmp_path}", "pretrain.duration=100000 steps")
        run = tmp_path / "small"
        deadline = time.monotonic() + 300
        while not any('"progress"' in file.read_text() for file in run.glob("jobs/*/events.jsonl")):
            assert command.process.poll() is None, command.text
            assert time.monotonic() < deadline, command.text
            time.sleep(0.5)
        token = (run / "launch" / "ray_token").read_text()
        started = command.descendants()
        command.process.kill()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, 60)
        logs = {path.name for path in Path(place).rglob("*.out")}
        assert {"raylet.out", "gcs_server.out"} <= logs
        assert files_with(CANARY, Path(place), tmp_path) == []
        assert files_with(token, Path(place), run / "jobs") == []

"""Several clusters one after the other in one process, each with a token of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.hosts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray]

CODE = """
import os, sys
from pathlib import Path
from pipeline.cluster import connect
from pipeline.rundir import RunDir

tokens = []
for name in ("one", "two"):
    run = RunDir(Path(sys.argv[1]) / name)
    with connect(run, None) as cluster:
        tokens.append((run.launch / "ray_token").read_text())
        assert len(cluster.look()) == 1
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ
assert tokens[0] != tokens[1]
print("both answered")
"""


def test_the_second_local_cluster_of_a_process_takes_its_own_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)],
        cwd=ROOT,
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "both answered\n"

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


NOT_UP = """
import sys
import psutil
from pathlib import Path
from pipeline import cluster
from pipeline.errors import EnvironmentUnfit
from pipeline.rundir import RunDir

def not_there(*arguments, **more):
    raise RuntimeError("no such node")

def slow_session(name, **options):
    from ray._private import services  # Ray's environment is set by now
    services.get_node = not_there  # as on a machine that is too busy to bring its raylet up
    return session(name, **options)

session, cluster._session = cluster._session, slow_session
try:
    with cluster.connect(RunDir(Path(sys.argv[1])), None):
        pass
except EnvironmentUnfit as error:
    print(error)
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=10)
    print("left over:", [process.name() for process in psutil.Process().children(recursive=True)])
"""


REUSED = """
import os, sys, time
from pathlib import Path
from pipeline.cluster import connect
from pipeline.rundir import RunDir

def small(seconds):
    time.sleep(seconds)
    return os.getpid()

with connect(RunDir(Path(sys.argv[1])), None) as cluster:
    import ray
    several = 4 * int(cluster.look()[0]["CPU"])
    job = ray.remote(num_cpus=0.25)(small)
    first = set(ray.get([job.remote(2.0) for _ in range(several)]))
    time.sleep(6)  # as the others of a fan-out, or a look at the results
    second = set(ray.get([job.remote(0.5) for _ in range(several)]))
    assert len(first) > several / 4, "they did not run side by side"
    print("new processes:", len(second - first))
"""


def run_code(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        env={**environment, "HOME": str(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_ray_that_does_not_come_up_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    result = run_code(NOT_UP, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "found: Ray at this machine did not start or answer" in result.stdout
    assert "timed out during startup" in result.stdout
    assert "left over: []" in result.stdout


def test_processes_of_small_jobs_wait_for_the_next_ones(tmp_path: Path) -> None:
    """Ray alone would keep one a CPU, and end the others after a second."""
    result = run_code(REUSED, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "new processes: 0\n"


def test_the_second_local_cluster_of_a_process_takes_its_own_token(tmp_path: Path) -> None:
    result = run_code(CODE, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "both answered\n"

"""Schedules read by the tools that would take them, where these are installed; the test's skip names them.

The API schemas of Kubernetes come with the package kubernetes-validate; Airflow lives in an environment of
its own, whose Python VITLINE_AIRFLOW names:

    python -m venv airflow && airflow/bin/pip install apache-airflow-core apache-airflow-providers-standard
    VITLINE_AIRFLOW=airflow/bin/python python -m pytest -m slow tests/unit/launch/test_schedule_tools.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cluster_config import load_cluster
from launch.schedule import Tick, airflow, cron, kubernetes

ROOT = Path(__file__).resolve().parents[3]
CRON_PID = Path("/run/crond.pid")
# Prints what Airflow's own parser made of the DAGs in a directory.
PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(dag_folder=sys.argv[1])
dags = [
    {
        "id": dag.dag_id,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "schedule": dag.timetable.expression,
        "timezone": str(dag.timezone),
        "tasks": [
            {
                "command": task.bash_command,
                "cwd": task.cwd,
                "retries": task.retries,
                "skip": list(task.skip_on_exit_code),
            }
            for task in dag.tasks
        ],
    }
    for dag in bag.dags.values()
]
print("PARSED " + json.dumps({"errors": {k: str(v) for k, v in bag.import_errors.items()}, "dags": dags}))
"""


def tick(cluster: str | None = None) -> Tick:
    return Tick(
        name="My run",
        config=Path("/srv/50% odd/run.yaml"),
        directory=Path("/srv/50% odd"),
        vitline="/bin/true",
        schedule="30 2 * * 1-5",
        timezone="Europe/Berlin",
        cluster=load_cluster(ROOT / "configs" / "clusters" / cluster if cluster else None),
    )


def test_the_api_schema_takes_the_cron_job() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    manifest = yaml.safe_load(kubernetes(tick("kubernetes.yaml"))["cronjob.yaml"])
    # Fields that the API does not know are refused, as by `kubectl apply --validate=strict`.
    schemas.validate(manifest, schemas.latest_version(), strict=True)
    manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["workingDirectory"] = "/"
    with pytest.raises(schemas.ValidationError, match="workingDirectory"):
        schemas.validate(manifest, schemas.latest_version(), strict=True)


def test_cron_reads_its_line(tmp_path: Path) -> None:
    tool = shutil.which("crontab")
    if tool is None or "-n" not in subprocess.run([tool, "-h"], capture_output=True, text=True).stderr:
        pytest.skip("no crontab that checks a file: apt-get install cron")
    (text,) = cron(tick()).values()
    (tmp_path / "cron").write_text(text)
    subprocess.run([tool, "-n", str(tmp_path / "cron")], check=True, timeout=60, capture_output=True)
    (tmp_path / "cron").write_text(text.replace("30 2 * * 1-5", "30 2 * * 1-9"))
    done = subprocess.run([tool, "-n", str(tmp_path / "cron")], timeout=60, capture_output=True, check=False)
    assert done.returncode != 0, "the tool would see a wrong line"


@pytest.mark.slow
def test_cron_itself_calls_the_tick(tmp_path: Path) -> None:
    """Installed as its head says, run by the daemon, and taken away."""
    tools = shutil.which("crontab"), shutil.which("cron")
    if None in tools or os.geteuid() != 0 or CRON_PID.exists():
        pytest.skip("needs root, and Debian's cron installed and not running: apt-get install cron")
    if subprocess.run(["crontab", "-l"], capture_output=True, check=False).returncode == 0:
        pytest.skip("there is a crontab already")
    here = tmp_path / "50% odd"
    here.mkdir()
    command = here / "vitline"
    command.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    command.chmod(0o755)
    here_tick = replace(tick(), directory=here, config=here / "run.yaml", vitline=str(command))
    (text,) = cron(replace(here_tick, schedule="* * * * *")).values()
    subprocess.run(["crontab", "-"], input=text, text=True, check=True)
    daemon = subprocess.Popen(["cron", "-f"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = here / "vitline-my-run.log"
    try:
        shown = subprocess.run(["crontab", "-l"], capture_output=True, text=True, check=True).stdout
        assert text in shown
        deadline = time.monotonic() + 150
        while not (log.exists() and log.read_text()) and time.monotonic() < deadline:
            time.sleep(1)
    finally:
        daemon.terminate()
        daemon.wait(60)
        CRON_PID.unlink()  # it leaves that
        subprocess.run(["crontab", "-r"], check=True)
    assert log.read_text().splitlines()[0] == f"{here} retrain {here}/run.yaml --wait"


def parse(directory: Path, python: str) -> dict[str, Any]:
    done = subprocess.run(
        [python, "-c", PARSE, str(directory)],
        env={**os.environ, "AIRFLOW_HOME": str(directory / "home"), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PARSED ")]
    assert lines, done.stdout + done.stderr
    return dict(json.loads(lines[0].removeprefix("PARSED ")))


@pytest.mark.slow
def test_airflow_parses_its_dag(tmp_path: Path) -> None:
    python = os.environ.get("VITLINE_AIRFLOW")
    if python is None:
        pytest.skip("VITLINE_AIRFLOW names no Python with Airflow 3")
    (tmp_path / "dags").mkdir()
    for name, text in airflow(tick()).items():
        (tmp_path / "dags" / name).write_text(text)
    found = parse(tmp_path / "dags", python)
    assert found["errors"] == {}
    (dag,) = found["dags"]
    assert (dag["id"], dag["catchup"], dag["max_active_runs"]) == ("vitline-my-run", False, 1)
    assert (dag["schedule"], dag["timezone"]) == ("30 2 * * 1-5", "Europe/Berlin")
    assert dag["tasks"] == [
        {
            "command": "/bin/true retrain '/srv/50% odd/run.yaml' --wait",
            "cwd": "/srv/50% odd",
            "retries": 0,
            "skip": [3, 6, 8],
        }
    ]
    (tmp_path / "dags" / "wrong.py").write_text(
        text.replace("sdk import DAG", "sdk import NoSuchThing as DAG")
    )
    assert len(parse(tmp_path / "dags", python)["errors"]) == 1, "the parser would see a wrong file"

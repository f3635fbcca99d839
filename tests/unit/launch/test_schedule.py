"""Renderings of the schedule, each read by its own tool where that runs here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launch.cluster_config import load_cluster
from launch.schedule import RENDERERS, Tick, airflow, calendar, cron, kubernetes, systemd
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def tick(schedule: str = "30 2 * * 1-5", cluster: str | None = None) -> Tick:
    return Tick(
        name="My run",
        config=Path("/srv/50% odd/run.yaml"),
        directory=Path("/srv/50% odd"),
        vitline="/bin/true",
        schedule=schedule,
        timezone="Europe/Berlin",
        cluster=load_cluster(ROOT / "configs" / "clusters" / cluster if cluster else None),
    )


def test_cron_is_one_line_with_its_percent_signs_escaped() -> None:
    text = cron(tick())["vitline-my-run.cron"]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines == [
        "CRON_TZ=Europe/Berlin",
        r"30 2 * * 1-5 cd '/srv/50\% odd' && /bin/true retrain '/srv/50\% odd/run.yaml' --wait"
        r" >> '/srv/50\% odd/vitline-my-run.log' 2>&1",
    ]


@pytest.mark.parametrize(
    ("schedule", "entries"),
    [
        ("0 2 * * *", ["*-*-* 2:0:00"]),
        ("*/15 8-18 * * 1,3", ["Mon,Wed *-*-* 8..18:0/15:00"]),
        ("0 2 1 */3 *", ["*-1/3-1 2:0:00"]),
        ("0 2 1 * 0", ["*-*-1 2:0:00", "Sun *-*-* 2:0:00"]),
    ],
)
def test_cron_fields_become_calendar_entries(schedule: str, entries: list[str]) -> None:
    assert calendar(schedule) == entries
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    for entry in entries:
        subprocess.run([tool, "calendar", entry], check=True, capture_output=True, timeout=60)


def test_systemd_reads_its_units(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    paths = []
    for name, text in systemd(tick()).items():
        (tmp_path / name).write_text(text)
        paths.append(str(tmp_path / name))
    done = subprocess.run([tool, "verify", *paths], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "vitline-my-run.service").write_text("[Service]\nType=oneshot\nExecStart=nowhere\n")
    done = subprocess.run([tool, "verify", *paths], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0, "the tool would see a wrong unit"


def test_airflow_file_is_python_that_imports_nothing_of_ours() -> None:
    tree = ast.parse(airflow(tick())["vitline-my-run.py"])
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules == {"airflow.providers.standard.operators.bash", "airflow.sdk"}
    named = {
        word.arg: ast.literal_eval(word.value)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        for word in call.keywords
        if isinstance(word.value, ast.Constant | ast.List)
    }
    assert named["bash_command"] == "/bin/true retrain '/srv/50% odd/run.yaml' --wait"
    assert named["skip_on_exit_code"] == [3, 6, 8]
    assert named["schedule"] == "30 2 * * 1-5"
    assert named["catchup"] is False


def test_kubernetes_cron_job() -> None:
    manifest = yaml.safe_load(kubernetes(tick(cluster="kubernetes.yaml"))["cronjob.yaml"])
    assert re.fullmatch("[a-z]([-a-z0-9]{0,50}[a-z0-9])?", manifest["metadata"]["name"])
    spec = manifest["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * 1-5", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == "Forbid"
    job = spec["jobTemplate"]["spec"]
    assert job["backoffLimit"] == 0
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][-1] == "/srv/50% odd/run.yaml"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert pod["restartPolicy"] == "Never"
    with pytest.raises(ConfigError, match="volume_claim"):
        kubernetes(tick())


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 0), (6, 0), (8, 0), (5, 5), (7, 7)])
def test_the_pod_ends_well_where_there_is_no_fault(tmp_path: Path, code: int, expected: int) -> None:
    manifest = yaml.safe_load(kubernetes(tick(cluster="kubernetes.yaml"))["cronjob.yaml"])
    command = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["command"]
    (tmp_path / "vitline").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "vitline").chmod(0o755)
    done = subprocess.run(command, env={"PATH": str(tmp_path)}, check=False, timeout=60)
    assert done.returncode == expected


def test_every_scheduler_has_a_renderer() -> None:
    assert set(RENDERERS) == {"cron", "systemd", "airflow", "kubernetes"}

"""What the targets render, held by goldens; how a request is checked; how files are kept.

A golden is the text of a file for one request below. After a change that is meant, write them anew with
`VITLINE_WRITE_GOLDENS=1 python -m pytest tests/unit/launch/test_targets.py` and read the difference.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.cluster_config import ClusterConfig, load_cluster
from launch.submission import TARGETS, launch
from launch.targets import local, ray_jobs, slurm
from launch.targets.request import CONFIG, Rendered, Request, make_request
from pipeline.config import RunConfig
from pipeline.config_io import load_config
from pipeline.errors import Busy, ConfigError, EnvironmentUnfit, UserError
from pipeline.rundir import read_json, write_json

ROOT = Path(__file__).resolve().parents[3]
GOLDENS = Path(__file__).parent / "goldens"
# A place that no machine has: renderings read no file.
PLACE = Path("/project/vit")
IMAGE = "registry.example.org/vitline@sha256:" + "0" * 64
GPU = {"workers": 16, "gpus_per_worker": 1, "cpus_per_worker": 8}


def config_of(gang: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    config = load_config(ROOT / "tests/integration/small.yaml")
    pretrain = config.pretrain.model_copy(
        update={"gang": type(config.pretrain.gang).model_validate(gang or {"workers": 2})}
    )
    return config.model_copy(update={"pretrain": pretrain, **changes})


def request_of(cluster: dict[str, Any], gang: dict[str, Any] | None = None, **options: Any) -> Request:
    settings = ClusterConfig.model_validate(cluster)
    given = {"nodes": None, "gpus_per_node": None, **options}
    return make_request(config_of(gang), settings, PLACE, **given)


REQUESTS = {
    "slurm": request_of({"gpus_per_node": 8, "cpus_per_node": 64}, GPU),
    "slurm_site": replace(
        request_of(
            {
                "nodes": 3,
                "environment": {"NCCL_SOCKET_IFNAME": "ib0", "GREETING": "it's 5 o'clock"},
                "slurm": {
                    "partition": "gpu",
                    "account": "vision",
                    "qos": "long",
                    "exclusive": False,
                    "max_requeues": 0,
                    "setup": ["module load cuda"],
                    "extra": ["--constraint=h100", "--exclude=n[7-8]", "--reservation=x"],
                    "container": {"runtime": "pyxis", "image": "/images/vitline.sqsh", "mounts": ["/data"]},
                },
            }
        ),
        exclude=("n2", "n5"),
    ),
    "slurm_elastic": request_of(
        {
            "gpus_per_node": 8,
            "slurm": {"container": {"runtime": "apptainer", "image": "vitline.sif"}},
        },
        {**GPU, "min_workers": 8},
        stop_after="3h50m",
    ),
    "local": request_of({}, stop_after="90m"),
    "ray": request_of(
        {"ray": {"dashboard": "https://ray.example.org"}, "preflight": "full"}, stop_after="1d"
    ),
}


def render(name: str) -> Rendered:
    return TARGETS[name.split("_")[0]].render(REQUESTS[name])


@pytest.mark.parametrize("name", REQUESTS)
def test_rendering_equals_its_golden(name: str) -> None:
    rendered = render(name)
    check_golden(f"{name}-{rendered.main}", rendered.files[rendered.main])


def check_golden(name: str, text: str) -> None:
    golden = GOLDENS / name
    if os.environ.get("VITLINE_WRITE_GOLDENS"):
        golden.write_text(text)
    assert golden.read_text() == text


@pytest.mark.parametrize("name", REQUESTS)
def test_the_configuration_beside_it_is_the_same_run(name: str, tmp_path: Path) -> None:
    file = tmp_path / CONFIG
    file.write_text(render(name).files[CONFIG])
    assert load_config(file) == REQUESTS[name].config


@pytest.mark.parametrize("name", REQUESTS)
def test_scripts_are_shell(name: str) -> None:
    rendered = render(name)
    script = rendered.files[rendered.main]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed; only `bash -n` looked")
    done = subprocess.run(["shellcheck", "-"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------- requests


def test_nodes_follow_from_the_gang() -> None:
    assert request_of({"gpus_per_node": 8}, GPU).nodes == 2
    assert request_of({"gpus_per_node": 8, "cpus_per_node": 32}, GPU).nodes == 4  # 4 ranks of 8 CPUs each
    assert request_of({"gpus_per_node": 8, "nodes": 5}, GPU).nodes == 5
    assert request_of({"gpus_per_node": 8, "nodes": 5}, GPU, nodes=3).nodes == 3
    assert request_of({}, GPU, gpus_per_node=4).nodes == 4


def test_a_gang_that_may_shrink_needs_fewer_nodes() -> None:
    elastic = request_of({"gpus_per_node": 4}, {**GPU, "min_workers": 8})
    assert (elastic.nodes, elastic.min_nodes) == (4, 2)
    fixed = request_of({"gpus_per_node": 4}, GPU)
    assert (fixed.nodes, fixed.min_nodes) == (4, 4)


def test_what_can_never_fit_is_refused_with_the_number_that_does() -> None:
    with pytest.raises(UserError, match=r"16 ranks, 1 nodes hold 8.*1 GPUs.*8 GPUs\n.*\n.*--nodes 2"):
        request_of({"gpus_per_node": 8}, GPU, nodes=1)
    with pytest.raises(UserError, match="2 nodes hold 8 of them: each needs 8 CPUs, a node has 32 CPUs"):
        request_of({"gpus_per_node": 8, "cpus_per_node": 32}, GPU, nodes=2)
    with pytest.raises(UserError, match="a rank needs 1 GPUs, a node has 0 GPUs"):
        request_of({}, GPU)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_runs_fit_the_shipped_clusters_on_the_nodes_that_their_heads_name(path: Path) -> None:
    found = re.search(r"Hardware: (\d+) nodes? × (\d+) H100", path.read_text())
    assert found is not None
    nodes, gpus = map(int, found.groups())
    config = load_config(path)
    for name in ("slurm", "kubernetes"):
        cluster = load_cluster(ROOT / "configs" / "clusters" / f"{name}.yaml")
        assert make_request(config, cluster, PLACE, nodes=nodes, gpus_per_node=gpus).nodes == nodes
    assert cluster.kubernetes is not None
    assert gpus * config.pretrain.gang.cpus_per_worker <= cluster.kubernetes.cpus


def test_a_password_in_a_url_is_refused() -> None:
    config = config_of()
    tracking = config.tracking.model_copy(update={"uri": "https://me:s3cret@mlflow.example.org"})
    with pytest.raises(ConfigError, match=r"tracking\.uri holds a user and a password") as error:
        make_request(
            config.model_copy(update={"tracking": tracking}),
            ClusterConfig(),
            PLACE,
            nodes=None,
            gpus_per_node=None,
        )
    assert "s3cret" not in str(error.value)


# ---------------------------------------------------------------- cluster files


@pytest.mark.parametrize("file", sorted((ROOT / "configs/clusters").glob("*.yaml")), ids=lambda f: f.stem)
def test_shipped_clusters_load_and_render(file: Path) -> None:
    request = make_request(config_of(), load_cluster(file), PLACE, nodes=2, gpus_per_node=None)
    assert TARGETS[file.stem].render(request).files


@pytest.mark.parametrize(
    "text, message",
    [
        ("slurm: {partitoin: x}", "unknown key slurm.partitoin; nearest: partition"),
        ("environment: {HF_TOKEN: abc}", "HF_TOKEN looks like a secret"),
        ('environment: {A: "x\\ny"}', "control character"),
        ('slurm: {extra: ["--comment=x\\n#SBATCH --uid=0"]}', "is no directive"),
        ('slurm: {extra: ["-p gpu"]}', "is no directive"),
        ('slurm: {extra: ["--comment=$(id)"]}', "is no directive"),
        ("slurm: {time: tomorrow}", "slurm.time"),
        ('slurm: {partition: "a b"}', "slurm.partition"),
        ('ray: {dashboard: "http://me:pw@host:8265"}', "ray.dashboard"),
    ],
)
def test_bad_cluster_files_are_explained(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_cluster(file)
    assert message in str(error.value)


def test_a_path_that_directives_cannot_hold_is_refused() -> None:
    request = make_request(config_of(), ClusterConfig(), Path("/my project"), nodes=1, gpus_per_node=0)
    with pytest.raises(UserError, match="Slurm's directives know no quotes"):
        slurm.render(request)


def test_local_paths_are_quoted() -> None:
    request = make_request(config_of(), ClusterConfig(), Path("/my 'project'"), nodes=1, gpus_per_node=0)
    script = local.render(request).files["run.sh"]
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "cd '/my '\"'\"'project'\"'\"''\n" in script


# ---------------------------------------------------------------- submitting


def put(name: str, request: Request, **options: Any) -> int:
    given = {"render_only": False, "out": None, "detach": False, "again": "AGAIN", "as_json": False}
    return launch(name, request, **{**given, **options})


@pytest.mark.parametrize("name, tool", [("slurm", "sbatch"), ("kubernetes", "kubectl")])
def test_without_the_tool_the_files_are_written_and_the_command_is_named(
    name: str, tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    cluster = ClusterConfig.model_validate({"kubernetes": {"image": IMAGE, "volume_claim": "runs"}})
    request = make_request(config_of(), cluster, tmp_path, nodes=2, gpus_per_node=0)
    with pytest.raises(EnvironmentUnfit, match=f"no {tool} on this machine") as error:
        put(name, request)
    files = TARGETS[name].render(request).files
    assert {file.name for file in request.launch.iterdir()} == set(files)
    assert f"there, type: {tool} " in str(error.value)
    assert error.value.exit_code == 7


@pytest.mark.parametrize(
    "said, message",
    [
        (
            "sbatch: error: Batch job failed: Unable to contact slurm controller (connect failure)",
            r"no Slurm controller answers here \(.*connect failure\).*\n.*\n.*`sinfo`.* type: sbatch ",
        ),
        (
            "sbatch: error: fetch_config: DNS SRV lookup failed\n"
            "sbatch: fatal: Could not establish a configuration source",
            "no Slurm controller answers here",
        ),
        (
            "sbatch: error: invalid partition specified: gpu\nsbatch: error: no",
            "refused .*gpu; sbatch: error: no",
        ),
    ],
)
def test_what_sbatch_says_is_told_apart(
    said: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "sbatch"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\nprintf '{said}\\n' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=2, gpus_per_node=0)
    with pytest.raises(EnvironmentUnfit, match=message):
        put("slurm", request)
    assert (request.launch / slurm.SCRIPT).exists()


def test_an_unreachable_dashboard_is_an_unfit_environment(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster = ClusterConfig.model_validate({"ray": {"dashboard": f"http://127.0.0.1:{port}"}})
    request = make_request(config_of(), cluster, tmp_path, nodes=1, gpus_per_node=0)
    with pytest.raises(EnvironmentUnfit, match="does not take jobs") as error:
        put("ray", request)
    assert (request.launch / ray_jobs.SCRIPT).exists()
    assert f"ssh -N -L {port}:127.0.0.1:{port} HEAD" in str(error.value)


def test_out_dash_prints_the_main_file_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=1, gpus_per_node=0)
    assert put("slurm", request, out="-") == 0
    assert capsys.readouterr().out == slurm.render(request).files[slurm.SCRIPT]
    assert list(tmp_path.iterdir()) == []


def test_render_only_lists_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=1, gpus_per_node=0)
    out = tmp_path / "out"
    assert put("slurm", request, render_only=True, out=str(out), as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(out / "job.sbatch"), str(out / CONFIG)]
    assert not request.run.exists()
    assert f" node {out / CONFIG} " in (out / "job.sbatch").read_text()


def test_a_run_that_is_driven_is_not_submitted_again(tmp_path: Path) -> None:
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=1, gpus_per_node=0)
    now = time.time()
    holder = {"host": "n7", "pid": 4711, "since": now - 60, "heartbeat": now}
    write_json(request.run / "lease.json", holder)
    with pytest.raises(Busy, match="process 4711 on n7"):
        put("slurm", request)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name; the real one is tried in tests/integration/test_launch_slurm.py."""
    tool = tmp_path / "bin" / "sbatch"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return tool


def test_submission_is_kept_and_the_next_commands_printed(
    sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch.write_text('#!/bin/sh\necho "77;cluster"\n')
    sbatch.chmod(0o755)
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=1, gpus_per_node=0)
    assert put("slurm", request) == 0
    script = request.launch / "job.sbatch"
    assert (request.launch / "submit.txt").read_text() == f"sbatch --parsable {script}\n"
    kept = read_json(request.launch / "submission.json")
    assert kept is not None
    assert kept["answer"]["job"] == "77"
    printed = capsys.readouterr().out
    for line in (
        f"tail -F {request.launch}/slurm-77.log",
        "scancel --batch --signal=TERM 77",
        f"vitline status {request.run}",
        "AGAIN",
    ):
        assert line in printed


def test_a_refusal_of_sbatch_is_told(sbatch: Path, tmp_path: Path) -> None:
    sbatch.write_text("#!/bin/sh\necho 'invalid partition specified: gpu' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    request = make_request(config_of(), ClusterConfig(), tmp_path, nodes=1, gpus_per_node=0)
    with pytest.raises(EnvironmentUnfit, match="invalid partition specified"):
        put("slurm", request)


# ---------------------------------------------------------------- a job on Ray


def test_the_submission_id_is_that_of_the_run() -> None:
    base = ray_jobs.base_id(REQUESTS["ray"])
    assert base == ray_jobs.base_id(request_of({}, nodes=7))
    elsewhere = make_request(config_of(), ClusterConfig(), Path("/other"), nodes=1, gpus_per_node=0)
    assert base != ray_jobs.base_id(elsewhere)


@pytest.mark.parametrize(
    "states, chosen",
    [
        ({}, ("r-a1", False)),
        ({"other-a1": "RUNNING", "r-a1x": "RUNNING"}, ("r-a1", False)),
        ({"r-a1": "RUNNING"}, ("r-a1", True)),
        ({"r-a1": "FAILED"}, ("r-a2", False)),
        ({"r-a9": "FAILED", "r-a10": "PENDING"}, ("r-a10", True)),
        ({"r-a9": "SUCCEEDED", "r-a10": "STOPPED"}, ("r-a11", False)),
    ],
)
def test_a_living_job_is_attached_to(states: dict[str, str], chosen: tuple[str, bool]) -> None:
    assert ray_jobs.choose_id("r", states) == chosen


@pytest.mark.parametrize(
    "state, driver, code",
    [("SUCCEEDED", 0, 0), ("FAILED", 7, 7), ("FAILED", 75, 75), ("STOPPED", None, 75), ("FAILED", None, 7)],
)
def test_exit_codes_of_jobs(state: str, driver: int | None, code: int) -> None:
    assert ray_jobs.exit_code(state, driver) == code

"""The commands `vitline launch` and `vitline node`: what is rendered is what the command line takes."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from launch import launch_commands, node
from launch.cluster_config import ClusterConfig
from launch.node_meet import Node
from launch.targets import slurm
from launch.targets.request import CONFIG, make_request
from pipeline.config_io import load_config
from pipeline.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
SMALL = ROOT / "tests/integration/small.yaml"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    launch_commands.register(app)
    return app


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """Nodes that would have been run."""
    found: list[Node] = []

    def run_node(given: Node) -> int:
        found.append(given)
        return 75

    monkeypatch.setattr(node, "run_node", run_node)
    return found


def test_the_rendered_job_is_understood_by_the_node(
    app: typer.Typer, started: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # as --chdir does
    config = load_config(SMALL, ["pretrain.gang={workers: 16, min_workers: 8, gpus_per_worker: 1}"])
    settings = ClusterConfig.model_validate({"gpus_per_node": 8, "cpus_per_node": 64, "join_timeout_s": 99})
    request = make_request(config, settings, tmp_path, nodes=None, gpus_per_node=None, stop_after="3h50m")
    rendered = slurm.render(request)
    request.launch.mkdir(parents=True)
    (request.launch / CONFIG).write_text(rendered.files[CONFIG])
    srun = rendered.files[slurm.SCRIPT].split("\nsrun ")[1].split("&\n")[0].replace("\\\n", " ")
    srun = srun.replace('"$attempt"', str(tmp_path / "meet")).replace('"$hosts"', "n1,n2")
    arguments = shlex.split(srun)
    arguments = arguments[arguments.index("node") :]
    variables = {"SLURM_NODEID": "1", "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2"}
    result = CliRunner().invoke(app, arguments, env=variables, catch_exceptions=False)
    assert result.exit_code == 75
    (one,) = started
    assert (one.index, one.nodes, one.min_nodes, one.job) == (1, 2, 1, "77")
    assert (one.cpus, one.gpus, one.join_timeout_s) == (64, 8, 99)
    assert one.hosts == ("n1", "n2")
    assert one.meet == tmp_path / "meet"
    assert one.launch == request.launch
    # The node has had all nodes looked at before.
    assert one.driver[1:] == (
        *("-m", "launch", "run", str(request.launch / CONFIG)),
        *("--preflight=off", "--stop-after=3h50m"),
    )
    assert one.preflight[1:4] == ("-m", "launch", "doctor")


def test_one_node_alone_needs_no_option(app: typer.Typer, started: list[Node]) -> None:
    CliRunner().invoke(app, ["node", str(SMALL), "seed=1"], catch_exceptions=False)
    (one,) = started
    assert (one.nodes, one.index, one.preflight) == (1, 0, ())
    assert one.driver[3:] == ("run", str(SMALL), "seed=1", "--preflight=off")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--role", "worker"], "--role worker with --index 0"),
        (["--role", "head", "--index", "1", "--nodes", "2", "--job", "a"], "--role head with --index 1"),
        (["--nodes", "2"], "no --job"),
    ],
)
def test_contradictions_are_refused(
    app: typer.Typer, started: list[Node], options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["node", str(SMALL), *options], catch_exceptions=False)
    assert started == []


def test_nothing_heavy_is_imported_for_help() -> None:
    code = (
        "import sys, launch.launch_commands\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pydantic', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_launch_hands_the_time_to_stop_on_and_refuses_nonsense(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["launch", "local", str(SMALL), "name=here", "--dry-run", "--stop-after"]
    result = CliRunner().invoke(app, [*given, "3h50m"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "config.yaml --stop-after=3h50m\n" in (tmp_path / "runs/here/launch/run.sh").read_text()
    with pytest.raises(UserError, match="--stop-after 'soon'"):
        CliRunner().invoke(app, [*given, "soon"], catch_exceptions=False)


def test_launch_renders_from_the_command_line(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, ["launch", "slurm", str(SMALL), "name=here", "--nodes", "3", "--dry-run"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "#SBATCH --nodes=3\n" in (tmp_path / "runs/here/launch/job.sbatch").read_text()

"""`--exclude-bad`: from what a preflight found to the nodes that the next start leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from launch import launch_commands
from launch.doctor_checks import Check
from launch.doctor_report import FILE_NAME, Report, report_json
from launch.doctor_together import cut_off, storage
from launch.exclusion import EXCLUDED, bad_nodes, keep, to_exclude
from pipeline.errors import UserError
from pipeline.rundir import write_json

ROOT = Path(__file__).resolve().parents[3]
SMALL = ROOT / "tests/integration/small.yaml"
CLUSTER = "kubernetes: {image: vitline, volume_claim: runs}\n"


def failing(*nodes: str, level: str = "fail") -> Check:
    return Check("GPU errors", level, "some", "none", "drain", nodes)  # type: ignore[arg-type]


def found(*checks: Check) -> dict[str, object]:
    return report_json(Report(("n1", "n2", "n3"), checks, 1.0))


def test_only_failures_of_some_nodes_are_a_matter_of_nodes() -> None:
    assert bad_nodes(found(failing("n3"), failing("n2"), failing("n3"))) == ["n2", "n3"]
    assert bad_nodes(found(failing("n1", level="warn"), failing())) == []
    # A full disk that all share is not mended by other nodes.
    assert bad_nodes(found(failing("n1", "n2", "n3"))) == []


def test_what_was_left_out_once_stays_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"doctor\.json is not there"):
        to_exclude(tmp_path, "slurm")
    write_json(tmp_path / FILE_NAME, found(failing("n3")))
    assert to_exclude(tmp_path, "slurm") == ("n3",)
    keep(tmp_path, ["n3"])
    write_json(tmp_path / FILE_NAME, found(failing("n1")))
    assert to_exclude(tmp_path, "slurm") == ("n1", "n3")
    write_json(tmp_path / FILE_NAME, found())
    assert to_exclude(tmp_path, "slurm") == ("n3",)
    (tmp_path / EXCLUDED).unlink()
    with pytest.raises(UserError, match="names no node at fault"):
        to_exclude(tmp_path, "slurm")


def test_who_is_cut_off_is_whom_most_do_not_find() -> None:
    assert cut_off([("a", "c"), ("b", "c"), ("c", "a"), ("c", "b")], 3) == ["c"]
    assert cut_off([("a", "b")], 3) == []
    written = {"a": "1", "b": "2", "c": "3"}
    gone = {"a": {"c": "error: no"}, "b": {"c": "error: no"}, "c": {"a": "error: no", "b": "error: no"}}
    read = {reader: {**written, **faults} for reader, faults in gone.items()}
    assert storage(written, read).at == ("c",)
    assert storage({**written, "b": "error: read-only"}, {}).at == ("b",)


@pytest.mark.parametrize(
    "target, file", [("slurm", "job.sbatch"), ("kubernetes", "rayjob.yaml"), ("local", "")]
)
def test_from_the_command_line(
    target: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    launch = tmp_path / "runs/here/launch"
    write_json(launch / FILE_NAME, found(failing("n3")))
    app = typer.Typer()
    launch_commands.register(app)
    words = ["launch", target, str(SMALL), "name=here", "--cluster=cluster.yaml", "--dry-run"]
    if not file:
        with pytest.raises(UserError, match="--exclude-bad with local"):
            CliRunner().invoke(app, [*words, "--exclude-bad"], catch_exceptions=False)
        return
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert "n3" not in (launch / file).read_text()
    assert CliRunner().invoke(app, [*words, "--exclude-bad"], catch_exceptions=False).exit_code == 0
    text = (launch / file).read_text()
    if target == "slurm":
        assert "#SBATCH --exclude=n3\n" in text
    else:
        (group,) = yaml.safe_load(text)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        (term,) = group["template"]["spec"]["affinity"]["nodeAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]["nodeSelectorTerms"]
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["n3"]}]
    assert json.loads((launch / EXCLUDED).read_text()) == {"nodes": ["n3"]}

"""The driver's own job: the report is of the comparison that was asked for last."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.driver import Driver, plan_run
from pipeline.graph import Planned
from pipeline.lease import Lease
from pipeline.rundir import RunDir
from tests.helpers.scripted import Scripted
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

EVALUATED = ("prepare", "pretrain", "choose", "finetune", "evaluate")


class Silent:
    def job(self, planned: Planned, state: str, reason: str) -> None: ...
    def tick(self) -> None: ...


def made(root: Path, protocol: str) -> RunConfig:
    """A configuration whose jobs are all done but for the comparison."""
    plain = synthetic_config(root).model_dump(mode="json")
    plain["transfer"]["protocol"]["name"] = protocol
    plain["report"] = {"images": False}  # no test of pictures
    config = RunConfig.model_validate(plain)
    write_synthetic_run(config, images=40, stages=EVALUATED)
    return config


def drive(config: RunConfig) -> list[str]:
    """Names of the jobs that were due."""
    run = RunDir(Path(config.root) / config.name)
    planned = plan_run(config, run)
    with Lease(run.lease) as lease:
        Driver(config, run, lease, Silent(), threading.Event(), lambda: None, Scripted()).drive(planned)
    return [item.job.name for item in planned if item.state == "due"]


def compared(config: RunConfig) -> Planned:
    run = RunDir(Path(config.root) / config.name)
    return next(item for item in plan_run(config, run) if item.job.name == "compare")


def test_going_back_to_an_earlier_protocol_makes_its_report_again(tmp_path: Path) -> None:
    page = tmp_path / "synthetic" / "report" / "report.html"
    first, second = made(tmp_path, "first-protocol"), made(tmp_path, "second-protocol")
    for config, name in ((first, "first-protocol"), (second, "second-protocol"), (first, "first-protocol")):
        assert drive(config) == ["compare"]
        assert name in page.read_text()
        assert (compared(config).state, compared(config).reason) == ("done", "unchanged")
        assert drive(config) == []
    assert compared(second).reason == "the report shows another comparison"


def test_a_report_that_was_cut_short_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = made(tmp_path, "quick")
    assert drive(config) == ["compare"]
    other = made(tmp_path, "other")

    def fail(run: RunDir, *_: object) -> None:
        (run.report / "report.html").write_text("half a page")
        raise OSError("the disk is full")

    monkeypatch.setattr("pipeline.report.build.build", fail)
    with pytest.raises(OSError, match="the disk is full"):
        drive(other)
    assert {compared(config).state, compared(other).state} == {"due"}

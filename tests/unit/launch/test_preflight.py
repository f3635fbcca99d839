"""When the nodes are looked at before a gang: once, when they hold it, and not for a gang of one node."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch import doctor
from launch.doctor_report import Report
from launch.preflight import Preflight
from pipeline.config import RunConfig
from pipeline.errors import EnvironmentUnfit
from pipeline.graph import Planned
from pipeline.rundir import RunDir
from tests.helpers.planned import item
from tests.helpers.scripted import Scripted, Watched
from tests.helpers.synthetic_run import synthetic_config

NODE = {"CPU": 2.0, "GPU": 0.0}


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look was a quick one."""
    found: list[bool] = []

    def preflight(config: RunConfig, run: RunDir, *, quick: bool) -> Report:
        found.append(quick)
        return Report(("a", "b"), (), 1.0)

    monkeypatch.setattr(doctor, "preflight", preflight)
    return found


def preflight_of(root: Path, *planned: Planned, quick: bool = True) -> Preflight:
    config = synthetic_config(root)
    return Preflight(config, RunDir(root), planned, quick=quick)


def test_a_gang_that_one_node_holds_is_not_looked_at(tmp_path: Path, looks: list[bool]) -> None:
    gang = item("pretrain", workers=2)
    preflight = preflight_of(tmp_path, gang)
    preflight.when_connected([NODE, NODE])
    preflight.before_gang(gang, [NODE, NODE])
    assert looks == []


def test_nodes_are_looked_at_once_when_the_cluster_is_joined(tmp_path: Path, looks: list[bool]) -> None:
    gang = item("pretrain", workers=4)
    preflight = preflight_of(tmp_path, item("choose/a"), gang, quick=False)
    preflight.when_connected([NODE, NODE])
    preflight.before_gang(gang, [NODE, NODE])
    preflight.before_gang(gang, [NODE, NODE])
    assert looks == [False]


def test_nodes_that_are_late_are_looked_at_when_the_gang_starts(tmp_path: Path, looks: list[bool]) -> None:
    gang = item("pretrain", workers=4, sizes=(3, 4))
    preflight = preflight_of(tmp_path, gang)
    preflight.when_connected([NODE])
    assert looks == []
    preflight.before_gang(gang, [NODE, NODE])
    assert looks == [True]


def test_a_gang_that_is_done_is_no_reason_to_look(tmp_path: Path, looks: list[bool]) -> None:
    gang = replace(item("pretrain", workers=4), state="done")
    preflight_of(tmp_path, gang, item("choose/a")).when_connected([NODE, NODE])
    assert looks == []


def test_a_node_that_is_not_fit_ends_the_run(tmp_path: Path) -> None:
    unfit = EnvironmentUnfit("a disk is full", "space", "make some")

    class Refusing(Scripted):
        def start(self, item: Planned) -> None:
            if item.job.workers:
                raise unfit
            super().start(item)

    executor = Refusing()
    watched = Watched(tmp_path, executor)
    watched.work.do([item("pretrain", workers=4), item("choose/a", needs="pretrain"), item("choose/b")])
    assert watched.work.fault is unfit
    assert set(watched.work.failed) == {"pretrain"}
    assert set(watched.work.not_run) == {"choose/a"}

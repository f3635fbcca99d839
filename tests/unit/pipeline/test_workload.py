"""What each outcome of a job means for the others."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.graph import Outcome, Planned
from tests.helpers.planned import item
from tests.helpers.scripted import Scripted, Watched

BROKEN = DataError("no images", "images", "add some")


def failure(digest: str, *, retry: bool = False, progressed: bool = False) -> Outcome:
    return Outcome(digest=digest, error=str(BROKEN), fault=BROKEN, retry=retry, progressed=progressed)


def two_datasets() -> list[Planned]:
    """Pre-training on glyphs (the synthetic configuration's), transfer to digits and count."""
    jobs = [item(f"prepare/{name}") for name in ("glyphs", "digits", "count")]
    jobs.append(item("pretrain", workers=1, needs="prepare/glyphs"))
    for name in ("digits", "count"):
        jobs.append(item(f"choose/{name}", needs=f"prepare/{name} pretrain"))
        jobs.append(item(f"finetune/{name}", needs=f"choose/{name} prepare/{name}"))
        jobs.append(item(f"evaluate/{name}", needs=f"finetune/{name} prepare/{name}"))
    return jobs


def test_a_broken_transfer_dataset_leaves_out_what_needs_it_and_nothing_else(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Scripted({"prepare/count": [failure("prepare/count")]}))
    watched.work.do(two_datasets())
    assert watched.work.fault is None
    assert watched.work.failed == {"prepare/count": str(BROKEN)}
    assert watched.work.not_run == {
        name: "prepare/count" for name in ("choose/count", "finetune/count", "evaluate/count")
    }
    assert watched.work.done == {
        *("prepare/glyphs", "prepare/digits", "pretrain"),
        *("choose/digits", "finetune/digits", "evaluate/digits"),
    }
    assert ("evaluate/count", "not run", "needs prepare/count, which failed") in watched.reports
    assert watched.of("choose/count") == ["not run"]


@pytest.mark.parametrize("name", ["prepare/glyphs", "pretrain"])
def test_without_pre_training_or_its_data_the_run_ends(tmp_path: Path, name: str) -> None:
    executor = Scripted({name: [failure(name)]})
    watched = Watched(tmp_path, executor)
    watched.work.do([*two_datasets(), item("choose/alone")])
    assert watched.work.fault is BROKEN
    assert "choose/digits" not in executor.started
    assert set(watched.work.failed) == {name}


def test_a_retry_that_can_help_is_made_within_the_budget(tmp_path: Path) -> None:
    often = {name: [failure(name, retry=True)] * 3 for name in ("choose/digits", "choose/count")}
    executor = Scripted(often | {"choose/count": often["choose/count"][:2]})
    watched = Watched(tmp_path, executor)
    watched.work.do(two_datasets())
    # fanout.retries is 2: the third failure is the last.
    assert executor.started.count("choose/digits") == 3
    assert set(watched.work.failed) == {"choose/digits"}
    assert set(watched.work.not_run) == {"finetune/digits", "evaluate/digits"}
    assert watched.of("choose/count")[-2:] == ["running", "done"]


def test_a_gang_that_gets_on_has_its_whole_budget_again(tmp_path: Path) -> None:
    lost = failure("pretrain", retry=True)
    onwards = failure("pretrain", retry=True, progressed=True)
    # pretrain.gang.max_failures is 3.
    watched = Watched(tmp_path, Scripted({"pretrain": [lost, lost, lost, onwards, lost, lost]}))
    watched.work.do(two_datasets())
    assert watched.work.fault is None
    assert "pretrain" in watched.work.done


def test_a_stop_ends_what_runs_and_starts_nothing(tmp_path: Path) -> None:
    stop = threading.Event()
    executor = Scripted()
    watched = Watched(tmp_path, executor, stop)
    watched.work.do([item("prepare/glyphs")])
    stop.set()
    watched.work.do([item("choose/a"), item("choose/b")])
    assert executor.started == ["prepare/glyphs"]


def test_jobs_that_run_when_a_stop_comes_are_asked_to_save(tmp_path: Path) -> None:
    stop = threading.Event()

    class StopsAtTheSecond(Scripted):
        def start(self, item: Planned) -> None:
            super().start(item)
            if len(self.started) == 2:
                stop.set()

    watched = Watched(tmp_path, StopsAtTheSecond(cpus=2), stop)
    watched.work.do([item("choose/a"), item("choose/b"), item("choose/c")])
    # The first ended before the driver looked at the stop; the third had no room yet.
    assert [(name, state) for name, state, _ in watched.reports][-2:] == [
        ("choose/a", "done"),
        ("choose/b", "stopped"),
    ]
    assert watched.of("choose/c") == []

"""What the driver is told of a gang that failed; the failures are Ray Train's own classes."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline import gang
from pipeline.errors import DataError, EnvironmentUnfit
from pipeline.graph import Job, Outcome, Planned
from pipeline.rundir import RunDir
from pipeline.train.attempt import rank_log

DEATH = "The actor died.\n\tpid: 7\n\tip: 10.77.0.2\nThe actor is dead because its node has died."
RESET = ConnectionError("Connection closed by peer")


def failure_of(error: WorkerGroupError, run: Path = Path("no-run")) -> Outcome:
    return gang._failure("digest", error, RunDir(run).job("digest"))


def lost(death: Exception) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.", death)


def test_the_rank_that_is_gone_is_named_before_those_that_noticed() -> None:
    gone = lost(RayActorError(actor_id="ab", error_msg=DEATH))
    outcome = failure_of(WorkerGroupError("", {0: RESET, 1: gone}))
    assert outcome.error is not None
    assert outcome.error.splitlines()[0] == "rank 1 on 10.77.0.2 was lost"
    assert outcome.error.endswith("its node has died.")
    assert outcome.retry


def test_a_death_without_an_address_has_its_rank() -> None:
    outcome = failure_of(WorkerGroupError("", {2: lost(ActorDiedError())}))
    assert outcome.error is not None
    assert outcome.error.splitlines()[0] == "rank 2 was lost"


def test_a_fault_of_ours_says_more_than_a_lost_rank() -> None:
    fault = DataError("a shard that ends early", "whole shards", "fetch it again")
    outcome = failure_of(WorkerGroupError("", {0: lost(ActorDiedError()), 1: fault}))
    assert outcome.fault is fault
    assert not outcome.retry


def test_survivors_alone_are_worth_another_try_and_a_bug_is_not() -> None:
    assert failure_of(WorkerGroupError("", {0: RESET})).retry
    assert not failure_of(WorkerGroupError("", {0: TypeError("no")})).retry


def test_the_rank_that_failed_by_itself_comes_first_with_its_traceback(tmp_path: Path) -> None:
    job = RunDir(tmp_path).job("digest")
    job.next_generation()
    with rank_log(job.rank_log(1, 1), 1):
        log = logging.getLogger("pipeline.train.worker")
        log.info("attempt 1")
        try:
            raise KeyError("patch_embed")
        except KeyError as error:
            log.error("failed: %s", error, exc_info=True)
            bug = error
    gone = RuntimeError("[gloo/pair.cc:547] Connection closed by peer [10.77.0.2]:4711")
    outcome = failure_of(WorkerGroupError("", {0: gone, 1: bug, 2: gone}), tmp_path)
    assert outcome.error is not None
    lines = outcome.error.splitlines()
    assert lines[0] == "rank 1: KeyError: 'patch_embed'"
    assert lines[1].endswith("attempt-0001/rank-00001.log:")
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-1] == "KeyError: 'patch_embed'"
    assert not outcome.retry, "it would come again"


def waiting(run: Path, patch: pytest.MonkeyPatch, *, begins: bool) -> gang.Gang:
    """A gang whose `fit` never returns, as where its controller cannot answer; without patience for that."""

    def fit() -> None:
        if begins:
            gang.mark(run, "d1", "rank")
        threading.Event().wait()

    patch.setattr(gang, "_places", set)
    patch.setattr(gang, "_START_TIMEOUT_S", 0.2)
    patch.setattr(gang.Gang, "_trainer", lambda self: SimpleNamespace(fit=fit))
    job = Job(name="pretrain", stage="pretrain", version=1, slice={}, identity={}, workers=2)
    return gang.Gang(run, Planned(job=job, digest="d1", inputs={}, state="due", reason="new"))


def test_a_gang_that_never_begins_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gang.mark(tmp_path, "d1", "rank")  # of an attempt before
    attempt = waiting(tmp_path, monkeypatch, begins=False)
    assert attempt.poll() is None
    time.sleep(0.3)
    outcome = attempt.poll()
    assert outcome is not None
    assert isinstance(outcome.fault, EnvironmentUnfit)
    assert not outcome.retry, "its thread and its places are not free"
    assert "no rank of pretrain has begun" in str(outcome.error)
    assert str(tmp_path) in str(outcome.error)


def test_a_gang_that_has_begun_may_take_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = waiting(tmp_path, monkeypatch, begins=True)
    time.sleep(0.5)
    assert attempt.poll() is None
    assert attempt.poll() is None


def ended_with(error: Exception, run: Path, patch: pytest.MonkeyPatch) -> Outcome:
    """What the driver gets when Ray Train's `fit` raises `error`."""

    def fit() -> None:
        raise error

    patch.setattr(gang, "_places", set)
    patch.setattr(gang.Gang, "_trainer", lambda self: SimpleNamespace(fit=fit))
    job = Job(name="pretrain", stage="pretrain", version=1, slice={}, identity={}, workers=2)
    attempt = gang.Gang(run, Planned(job=job, digest="d1", inputs={}, state="due", reason="new"))
    end = time.monotonic() + 60
    while (outcome := attempt.poll()) is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    return outcome


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("memory was short")])
def test_a_controller_that_is_gone_gives_its_places_back_and_is_started_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[set[str]] = []
    monkeypatch.setattr(gang, "_free_places", freed.append)
    assert ended_with(error, tmp_path, monkeypatch).retry
    assert freed == [set()]


def test_whatever_goes_wrong_reaches_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(before: set[str]) -> None:
        raise RuntimeError("no head to ask")

    monkeypatch.setattr(gang, "_free_places", fail)
    outcome = ended_with(ActorDiedError(), tmp_path, monkeypatch)
    assert outcome.error == "RuntimeError: no head to ask"
    assert not outcome.retry

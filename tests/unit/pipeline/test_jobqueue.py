"""Which jobs may start: inputs, order, the gang's right of way, and what can never run."""

from __future__ import annotations

from pipeline.graph import Planned
from pipeline.jobqueue import JobQueue
from tests.helpers.planned import item


def queue(*items: Planned, done: tuple[str, ...] = ()) -> JobQueue:
    return JobQueue(items, done, lambda planned: planned.job.cost)


def names(items: list[Planned]) -> list[str]:
    return [planned.job.name for planned in items]


def test_only_jobs_with_their_inputs_and_within_the_room_start() -> None:
    waiting = queue(
        item("choose/a", needs="prepare/a"),
        item("choose/b", needs="pretrain"),
        item("choose/c"),
        item("choose/d"),
        done=("prepare/a",),
    )
    assert names(waiting.startable({"CPU": 2})) == ["choose/a", "choose/c"]
    assert names(waiting.startable({"CPU": 1})) == ["choose/a"]
    assert names(waiting.startable({"CPU": 0})) == []


def test_a_job_becomes_ready_when_the_last_of_its_inputs_is_done() -> None:
    waiting = queue(item("evaluate/x", needs="choose/a choose/b"))
    waiting.finished("choose/a")
    assert waiting.startable({"CPU": 9}) == []
    waiting.finished("choose/b")
    assert names(waiting.startable({"CPU": 9})) == ["evaluate/x"]


def test_all_datasets_come_before_any_training() -> None:
    waiting = queue(
        item("prepare/b"),
        item("pretrain", workers=1, needs="prepare/a"),
        item("choose/a"),
        done=("prepare/a",),
    )
    assert names(waiting.startable({"CPU": 8})) == ["prepare/b"]
    waiting.take("prepare/b")
    assert names(waiting.startable({"CPU": 8})) == []  # it runs
    waiting.finished("prepare/b")
    assert names(waiting.startable({"CPU": 8})) == ["pretrain", "choose/a"]


def test_a_gang_that_waits_holds_back_small_jobs() -> None:
    waiting = queue(item("choose/a"), item("pretrain", workers=2))
    assert names(waiting.startable({"CPU": 1})) == []
    assert names(waiting.startable({"CPU": 3})) == ["pretrain", "choose/a"]


def test_longest_first_within_a_stage_and_stage_before_stage() -> None:
    waiting = queue(
        item("evaluate/long", cost=99),
        item("choose/short", cost=1),
        item("choose/long", cost=9),
        item("choose/longest", cost=10, needs="prepare/a"),
    )
    assert names(waiting.startable({"CPU": 9})) == ["choose/long", "choose/short", "evaluate/long"]
    waiting.finished("prepare/a")
    assert names(waiting.startable({"CPU": 1})) == ["choose/longest"]


def test_a_job_that_fits_starts_though_a_longer_one_does_not() -> None:
    waiting = queue(item("choose/wide", cpus=4, cost=9), item("choose/narrow"))
    assert names(waiting.startable({"CPU": 2})) == ["choose/narrow"]


def test_the_cost_is_asked_for_once_the_inputs_are_done() -> None:
    asked = []

    def cost(planned: Planned) -> float:
        asked.append(planned.job.name)
        return 5.0

    waiting = JobQueue([item("choose/a", needs="prepare/a")], (), cost)
    assert asked == []
    waiting.finished("prepare/a")
    assert (asked, waiting.startable({"CPU": 1})[0].job.cost) == (["choose/a"], 5.0)


def test_fractions_of_a_gpu_pack() -> None:
    waiting = queue(*(item(f"choose/{i}", cpus=0.1, gpus=0.25) for i in range(5)))
    assert len(waiting.startable({"CPU": 8, "GPU": 1})) == 4


def test_jobs_behind_a_failure_are_taken_out_and_the_comparison_is_not() -> None:
    waiting = queue(
        item("evaluate/a", needs="finetune/a"),
        item("evaluate/b", needs="finetune/b"),
        item("compare", needs="finetune/a"),
    )
    assert names(waiting.failed("finetune/a")) == ["evaluate/a"]
    assert names(list(waiting)) == ["evaluate/b", "compare"]
    waiting.finished("finetune/a")
    assert waiting.startable({"CPU": 8}) == []


def test_what_is_put_back_has_its_place_again() -> None:
    waiting = queue(item("choose/a"), item("choose/b"))
    taken = waiting.take("choose/a")
    assert names(waiting.startable({"CPU": 1})) == ["choose/b"]
    waiting.put_back(taken)
    assert names(waiting.startable({"CPU": 1})) == ["choose/a"]
    assert len(waiting) == 2


def test_an_elastic_gang_takes_what_there_is_or_keeps_its_least() -> None:
    gang = item("pretrain", workers=4, sizes=(2, 4))
    assert [planned.job.workers for planned in queue(gang).startable({"CPU": 3})] == [2]
    waiting = queue(gang, item("choose/a"))
    assert names(waiting.startable({"CPU": 1})) == []
    assert names(waiting.startable({"CPU": 2.5})) == ["pretrain"]

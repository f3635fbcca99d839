"""Which jobs may start: resources, the gang's right of way, and what can never run."""

from __future__ import annotations

from pipeline.admission import free, lacking, orphans, size_for, startable
from pipeline.graph import Job, Planned


def item(
    name: str,
    *,
    cpus: float = 1,
    gpus: float = 0,
    workers: int = 0,
    sizes: tuple[int, ...] = (),
    cost: float = 0,
    needs: str = "",
) -> Planned:
    job = Job(
        name=name,
        stage=name.split("/")[0],
        version=1,
        slice={},
        identity={},
        inputs={"data": needs} if needs else {},
        cpus=cpus,
        gpus=gpus,
        workers=workers,
        sizes=sizes or ((workers,) if workers else ()),
        cost=cost,
    )
    return Planned(job=job, digest=name, inputs={}, state="due", reason="new")


def names(items: list[Planned]) -> list[str]:
    return [planned.job.name for planned in items]


def test_only_jobs_with_their_inputs_and_within_the_resources_start() -> None:
    waiting = [
        item("choose/a", needs="prepare/a"),
        item("choose/b", needs="pretrain"),
        item("choose/c"),
        item("choose/d"),
    ]
    assert names(startable(waiting, {"prepare/a"}, [], {"CPU": 2})) == ["choose/a", "choose/c"]
    assert names(startable(waiting, {"prepare/a"}, [item("choose/x")], {"CPU": 2})) == ["choose/a"]


def test_all_datasets_come_before_any_training() -> None:
    waiting = [item("prepare/b"), item("pretrain", workers=1, needs="prepare/a"), item("choose/a")]
    assert names(startable(waiting, {"prepare/a"}, [], {"CPU": 8})) == ["prepare/b"]
    assert names(startable(waiting[1:], {"prepare/a"}, [item("prepare/b")], {"CPU": 8})) == []


def test_a_gang_that_waits_holds_back_small_jobs() -> None:
    waiting = [item("choose/a"), item("pretrain", workers=2)]
    assert names(startable(waiting, set(), [item("choose/b")], {"CPU": 2})) == []
    assert names(startable(waiting, set(), [], {"CPU": 3})) == ["pretrain", "choose/a"]


def test_longest_first() -> None:
    waiting = [item("choose/short", cost=1), item("choose/long", cost=9)]
    assert names(startable(waiting, set(), [], {"CPU": 1})) == ["choose/long"]


def test_fractions_of_a_gpu_pack() -> None:
    waiting = [item(f"choose/{i}", cpus=0.1, gpus=0.25) for i in range(5)]
    assert len(startable(waiting, set(), [], {"CPU": 8, "GPU": 1})) == 4


def test_jobs_behind_a_failure_are_named_and_the_comparison_is_not() -> None:
    waiting = [item("evaluate/a", needs="finetune/a"), item("compare", needs="finetune/a")]
    assert [(i.job.name, why) for i, why in orphans(waiting, {"finetune/a": "x"})] == [
        ("evaluate/a", "its input finetune/a failed")
    ]


def test_what_never_fits_is_named_with_both_numbers() -> None:
    lack = lacking([item("pretrain", gpus=2, workers=2)], {"CPU": 8, "GPU": 1})
    assert lack is not None
    assert lack[1] == "pretrain needs 4 GPU, the cluster has 1"
    assert lacking([item("pretrain", workers=4, sizes=(2, 4))], {"CPU": 2}) is None


def test_an_elastic_gang_takes_what_there_is_and_grows_later() -> None:
    gang = item("pretrain", workers=8, sizes=(1, 2, 4, 8))
    started = startable([gang], set(), [], {"CPU": 7})
    assert [planned.job.workers for planned in started] == [4]
    # Of its own four and the new ones it could have eight.
    assert size_for(gang, free({"CPU": 9}, [])) == 8
    assert size_for(gang, free({"CPU": 9}, [item("choose/a", cpus=3)])) == 4


def test_an_elastic_gang_without_room_keeps_its_least() -> None:
    waiting = [item("pretrain", workers=4, sizes=(2, 4)), item("choose/a")]
    assert names(startable(waiting, set(), [item("choose/b")], {"CPU": 2})) == []
    assert names(startable(waiting, set(), [item("choose/b", cpus=2)], {"CPU": 4.5})) == ["pretrain"]

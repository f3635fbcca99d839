"""The graph: what is due, what is skipped, and the reasons."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.graph import Job, Planned, Selection, plan, select


def job(name: str, inputs: dict[str, str] | None = None, *, version: int = 1, **settings: Any) -> Job:
    return Job(
        name=name,
        stage=name.split("/")[0],
        version=version,
        slice=settings,
        identity=settings,
        inputs=inputs or {},
    )


def chain(**rates: float) -> list[Job]:
    """prepare → pretrain → finetune/a, finetune/b; listed with the last first."""
    return [
        job("finetune/a", {"model": "pretrain"}, lr=rates.get("a", 0.1)),
        job("finetune/b", {"model": "pretrain"}, lr=rates.get("b", 0.1)),
        job("pretrain", {"data": "prepare/x"}, steps=rates.get("steps", 10)),
        job("prepare/x", source="glyphs"),
    ]


def by_name(planned: list[Planned]) -> dict[str, Planned]:
    return {item.job.name: item for item in planned}


def earlier(planned: list[Planned]) -> dict[str, dict[str, Any]]:
    return {
        item.job.name: {
            "slice": dict(item.job.slice),
            "inputs": dict(item.inputs),
            "stage_version": item.job.version,
        }
        for item in planned
    }


def test_inputs_come_first_and_all_is_new() -> None:
    planned = plan(chain(), lambda digest: False, {})
    names = [item.job.name for item in planned]
    assert names.index("prepare/x") < names.index("pretrain") < names.index("finetune/a")
    assert {item.reason for item in planned} == {"new"}
    assert len({item.digest for item in planned}) == 4


def test_a_changed_rate_reruns_only_its_job() -> None:
    before = plan(chain(), lambda digest: True, {})
    done = {item.digest for item in before}
    now = by_name(plan(chain(a=0.3), done.__contains__, earlier(before)))
    assert [name for name, item in now.items() if item.state == "due"] == ["finetune/a"]
    assert now["finetune/a"].reason == "changed: lr 0.1 → 0.3"


def test_a_changed_stage_reruns_all_that_follows() -> None:
    before = plan(chain(), lambda digest: True, {})
    done = {item.digest for item in before}
    now = by_name(plan(chain(steps=20), done.__contains__, earlier(before)))
    assert now["prepare/x"].state == "done"
    assert now["pretrain"].reason == "changed: steps 10 → 20"
    assert now["finetune/b"].reason == "inputs changed: pretrain"


def test_what_did_not_finish_says_so() -> None:
    before = plan(chain(), lambda digest: False, {})
    done = {item.digest for item in before if item.job.stage != "finetune"}
    now = by_name(plan(chain(), done.__contains__, earlier(before)))
    assert now["finetune/a"].reason == "not finished"
    assert now["pretrain"].state == "done"


def test_a_new_stage_version_is_named() -> None:
    before = plan([job("pretrain")], lambda digest: True, {})
    now = plan([job("pretrain", version=2)], lambda digest: False, earlier(before))
    assert now[0].reason == "stage version 1 → 2"


def test_tuples_equal_lists_that_came_back_from_json() -> None:
    before = plan([job("pretrain", area=[0.5, 1.0])], lambda digest: False, {})
    now = plan([job("pretrain", area=(0.5, 1.0))], lambda digest: False, earlier(before))
    assert now[0].digest == before[0].digest
    assert now[0].reason == "not finished"


STAGES = ("prepare", "pretrain", "finetune")


def chosen(planned: list[Planned], **bounds: Any) -> dict[str, str]:
    return {item.job.name: item.state for item in select(planned, Selection(**bounds), STAGES)}


def test_a_selection_leaves_later_stages_as_they_are() -> None:
    planned = plan(chain(), lambda digest: False, {})
    assert chosen(planned, last="pretrain") == {"prepare/x": "due", "pretrain": "due"}


def test_a_selection_that_lacks_its_inputs_is_refused_by_name() -> None:
    planned = plan(chain(), lambda digest: False, {})
    with pytest.raises(UserError, match="finetune/a is due and needs pretrain"):
        select(planned, Selection(first="finetune"), STAGES)
    done = {item.digest for item in planned if item.job.stage != "finetune"}
    again = plan(chain(), done.__contains__, {})
    assert chosen(again, first="finetune") == {
        "prepare/x": "done",
        "pretrain": "done",
        "finetune/a": "due",
        "finetune/b": "due",
    }


def test_what_is_forced_is_due_again_with_all_that_follows() -> None:
    planned = plan(chain(), lambda digest: True, {})
    states = chosen(planned, force=frozenset({"pretrain"}))
    assert states == {"prepare/x": "done", "pretrain": "due", "finetune/a": "due", "finetune/b": "due"}


def test_an_unknown_stage_is_refused() -> None:
    with pytest.raises(UserError, match="'pretain'"):
        select([], Selection(last="pretain"), STAGES)

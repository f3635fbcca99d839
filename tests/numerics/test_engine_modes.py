"""Parameters in bf16 and float16, and ZeRO stage 0: the same step as a bare float32 loop within a stated
bound, resumed by other stages, ranks and engines, and nothing updated by what is not finite.

DeepSpeed refuses float16 on processors without float16 instructions; engine_ranks.py answers that question
for it, and PyTorch then computes in float16 all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.engine_world import FLOAT32, ROOT, Seen, check, run_world

# Relative, on losses and norms; measured over stages, ranks and accumulation: 5e-3 and 1e-3.
BF16, FLOAT16 = 1e-2, 3e-3


def params(stage: int = 1) -> dict[str, Any]:
    return {"precision": "bf16_params", "stage": stage}


def fp16(stage: int = 1, power: int = 8, **more: Any) -> dict[str, Any]:
    scaling = {"initial_scale_power": power, "hysteresis": 1, **more}
    return {"precision": "fp16", "stage": stage, "deepspeed": {"fp16": scaling}}


OFFLOAD = json.loads((ROOT / "configs/deepspeed/zero3-offload.json").read_text())
# At stage 3, built so that no rank ever holds the whole network.
PARTS: dict[str, dict[str, Any]] = {
    "parts": {"stage": 3},
    "parts in bf16": params(3),
    "parts in host memory": {"stage": 3, "deepspeed": OFFLOAD},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("modes")


# On every run; the others are slow.
QUICK = {
    *("bf16", "bf16 in 3 parts", "bf16 stage 2 in 2 parts", "bf16 1 to 3", "bf16 poisoned 1"),
    *(
        "fp16 stage 3 in 3 parts",
        "fp16 overflows",
        "fp16 1 to 3",
        "fp16 poisoned 1",
        "fp16 at its lowest scale",
    ),
    *("stage 0", "stage 0 in 3 parts", "stage 0 poisoned", "0 to 3", "3 back to 0", "3 gone back", "lost"),
    *("parts", "parts in bf16", "0 to parts"),
}


def named(*names: str) -> list[Any]:
    """Parameters of a test: names of cases, marked as slow where they are."""
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in names]


@pytest.fixture(scope="module")
def two(directory: Path) -> Seen:
    return run_world(2, [case for case in cases_of_two(directory) if case["name"] in QUICK], directory)


@pytest.fixture
def seen(request: pytest.FixtureRequest, name: str) -> Seen:
    """The world in which the case `name` ran."""
    world: Seen = request.getfixturevalue("two" if name in QUICK else "rest")
    return world


@pytest.fixture(scope="module")
def rest(directory: Path, two: Seen) -> Seen:
    """After `two`, whose checkpoints some of these load."""
    return run_world(2, [case for case in cases_of_two(directory) if case["name"] not in QUICK], directory)


def cases_of_two(directory: Path) -> list[dict[str, Any]]:
    saved = {"average": 0.6, "steps": 5}

    def at(name: str) -> str:
        return str(directory / name)

    cases: list[dict[str, Any]] = [
        # First: without a self-test nothing has told DeepSpeed of the ranks when a network is built in parts.
        *(
            {"name": name, "in parts": True, "engine": engine, "start": True, "steps": 5}
            for name, engine in PARTS.items()
        ),
        {"name": "bf16", "engine": params(), "start": True, **saved, "save": at("bf16")},
        {"name": "bf16 for 10 steps", "engine": params(), "steps": 10, "average": 0.6},
        {"name": "bf16 in 3 parts", "engine": params(), "accumulation": 3, "steps": 5},
        {"name": "bf16 stage 2 in 2 parts", "engine": params(2), "accumulation": 2, "steps": 5},
        {"name": "bf16 stage 3", "engine": params(3), "start": True, "steps": 5},
        {"name": "bf16 stage 3 in 3 parts", "engine": params(3), "accumulation": 3, "steps": 5},
        {"name": "sgd bf16", "optimizer": "sgd", "engine": params(), "steps": 5},
        {"name": "bf16 1 to 1", "engine": params(), **saved, "load": at("bf16")},
        {"name": "bf16 1 to 3", "engine": params(3), **saved, "load": at("bf16")},
        *({"name": f"bf16 poisoned {n}", "engine": params(n), "poison": 2, "steps": 5} for n in (1, 2, 3)),
        {"name": "bf16 self-test", "self_test": True, "accumulation": 3, "engine": params()},
        {"name": "fp16", "engine": fp16(), "start": True, "steps": 5},
        {"name": "fp16 stage 2 in 2 parts", "engine": fp16(2), "accumulation": 2, "steps": 5},
        {"name": "fp16 stage 3 in 3 parts", "engine": fp16(3), "accumulation": 3, "steps": 5},
        {"name": "fp16 overflows", "engine": fp16(power=18), "steps": 5, "save": at("fp16")},
        {"name": "fp16 1 to 3", "engine": fp16(3, power=18), "steps": 5, "load": at("fp16")},
        *({"name": f"fp16 poisoned {n}", "engine": fp16(n), "poison": 2, "steps": 5} for n in (1, 3)),
        {
            "name": "fp16 at its lowest scale",
            "engine": fp16(power=18, min_loss_scale=2**18),
            "steps": 2,
        },
        {"name": "fp16 self-test", "self_test": True, "accumulation": 3, "engine": fp16(power=16)},
        {"name": "stage 0", "engine": {"stage": 0}, **saved, "save": at("stage-0")},
        {"name": "stage 0 for 10 steps", "engine": {"stage": 0}, "steps": 10, "average": 0.6},
        {"name": "stage 0 in 3 parts", "engine": {"stage": 0}, "accumulation": 3, "steps": 5},
        {"name": "stage 0 autocast", "engine": {"stage": 0, "precision": "bf16"}, "steps": 5},
        {"name": "sgd stage 0", "optimizer": "sgd", "engine": {"stage": 0}, "steps": 5},
        {"name": "stage 0 poisoned", "engine": {"stage": 0}, "poison": 2, "steps": 5},
        {"name": "0 to 0", "engine": {"stage": 0}, **saved, "load": at("stage-0")},
        {"name": "0 to 3", "engine": {"stage": 3}, **saved, "load": at("stage-0"), "save": at("stage-3")},
        {"name": "3 back to 0", "engine": {"stage": 0}, "steps": 2, "load": at("stage-3")},
        {"name": "0 gone back", "engine": {"stage": 0}, "steps": 5, "back to": at("stage-0")},
        {"name": "3 gone back", "engine": {"stage": 3}, "steps": 5, "back to": at("stage-0")},
        {"name": "0 to parts", "in parts": True, "engine": {"stage": 3}, "steps": 5, "load": at("stage-0")},
        {"name": "stage 0 self-test", "self_test": True, "accumulation": 3, "engine": {"stage": 0}},
        {"name": "lost", "self_test": True, "accumulation": 2, "engine": {"stage": 0}, "fault": "lost"},
    ]
    return cases


@pytest.fixture(scope="module")
def one(directory: Path, two: Seen) -> Seen:
    plain = {"kind": "plain"}
    stage_0, bf16 = str(directory / "stage-0"), str(directory / "bf16")
    cases: list[dict[str, Any]] = [
        {"name": "stage 0 in 4 parts", "engine": {"stage": 0}, "accumulation": 4, "steps": 5},
        {
            "name": "0 to plain",
            "engine": plain,
            "steps": 5,
            "load": stage_0,
            "save": str(directory / "plain"),
        },
        {"name": "0 to 2", "engine": {"stage": 2}, "steps": 5, "load": stage_0},
        {"name": "bf16 in 4 parts", "engine": params(), "accumulation": 4, "steps": 5},
        {"name": "bf16 1 to 2", "engine": params(2), "steps": 5, "load": bf16},
        {
            "name": "bf16 to plain autocast",
            "engine": {"precision": "bf16", **plain},
            "steps": 5,
            "load": bf16,
        },
    ]
    return run_world(1, cases, directory)


@pytest.fixture(scope="module")
def four(directory: Path, one: Seen) -> Seen:
    plain, bf16 = str(directory / "plain"), str(directory / "bf16")
    cases: list[dict[str, Any]] = [
        {"name": "stage 0 in 3 parts", "engine": {"stage": 0}, "accumulation": 3, "steps": 5},
        {"name": "plain to 0", "engine": {"stage": 0}, "steps": 2, "load": plain},
        {"name": "bf16", "engine": params(), "steps": 5},
        {"name": "bf16 1 to 3", "engine": params(3), "steps": 5, "load": bf16},
        {"name": "fp16 stage 2 in 3 parts", "engine": fp16(2), "accumulation": 3, "steps": 5},
    ]
    return run_world(4, cases, directory)


BF16_CASES = ("bf16", "bf16 for 10 steps", "bf16 in 3 parts", "bf16 stage 2 in 2 parts", "bf16 stage 3")


@pytest.mark.parametrize("name", named(*BF16_CASES, "bf16 stage 3 in 3 parts", "stage 0 autocast"))
def test_bf16_stays_near_a_float32_loop(seen: Seen, name: str) -> None:
    check(seen, name, BF16)
    assert seen[name]["losses"] != pytest.approx(
        seen["adam"]["losses"][: len(seen[name]["losses"])], rel=1e-6
    )


@pytest.mark.slow
def test_bf16_parameters_with_momentum(rest: Seen) -> None:
    check(rest, "sgd bf16", BF16)


@pytest.mark.parametrize("name", named("fp16", "fp16 stage 2 in 2 parts", "fp16 stage 3 in 3 parts"))
def test_float16_stays_nearer(seen: Seen, name: str) -> None:
    check(seen, name, FLOAT16)
    assert seen[name]["scales"] == [256.0] * 5


@pytest.mark.parametrize("name", named("bf16", "bf16 stage 3", "fp16", *PARTS))
def test_masters_start_from_unrounded_weights(seen: Seen, name: str) -> None:
    assert seen[name]["start"] == seen[name]["expected start"]


@pytest.mark.parametrize(
    "name", named("stage 0", "stage 0 for 10 steps", "stage 0 in 3 parts", "sgd stage 0")
)
def test_stage_0_equals_a_bare_loop(seen: Seen, name: str) -> None:
    check(seen, name)


@pytest.mark.parametrize("name", named(*PARTS))
def test_a_network_that_is_never_whole_trains_the_same(seen: Seen, name: str) -> None:
    check(seen, name, BF16 if "bf16" in name else FLOAT32)


def test_a_network_that_is_never_whole_loads_a_checkpoint(two: Seen) -> None:
    """Small parameters are gathered once they are filled, and were not gathered again after loading."""
    check(two, "0 to parts", first=5)


@pytest.mark.slow
def test_the_same_ranks_go_on_as_if_nothing_had_been(rest: Seen) -> None:
    """Not even that stage 3 ran in the process meanwhile, which replaces torch's linear layers for good."""
    assert rest["bf16 1 to 1"]["losses"] == rest["bf16 for 10 steps"]["losses"][5:]
    assert rest["0 to 0"]["losses"] == rest["stage 0 for 10 steps"]["losses"][5:]


def test_other_stages_go_on(two: Seen) -> None:
    check(two, "bf16 1 to 3", BF16, first=5)
    check(two, "0 to 3", FLOAT32, first=5)
    check(two, "3 back to 0", FLOAT32, first=10)


@pytest.mark.parametrize("name", named("0 gone back", "3 gone back"))
def test_going_back_within_an_attempt_leaves_nothing_stale(seen: Seen, name: str) -> None:
    check(seen, name, first=5)


@pytest.mark.parametrize("name", named("stage 0 for 10 steps", "0 to 3"))
def test_the_average_is_that_of_whole_weights(seen: Seen, name: str) -> None:
    assert seen[name]["average"] == pytest.approx(seen["adam"]["average"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", named("bf16 for 10 steps", "bf16 1 to 3"))
def test_the_average_of_bf16_is_made_of_float32_masters(seen: Seen, name: str) -> None:
    # Adam divides by small roots, so an element may move by more than the loss: measured 6e-4 of 0.1.
    assert seen[name]["average"] == pytest.approx(seen["adam"]["average"], abs=3e-3)
    average = torch.tensor(seen[name]["average"])
    assert not torch.equal(average, average.bfloat16().float()), "the average was rounded"


POISONED = [*(f"bf16 poisoned {n}" for n in (1, 2, 3)), *(f"fp16 poisoned {n}" for n in (1, 3))]


@pytest.mark.parametrize("name", named(*POISONED, "stage 0 poisoned"))
def test_a_gradient_that_is_not_finite_on_one_rank_is_left_out_by_all(seen: Seen, name: str) -> None:
    case = seen[name]
    assert case["applied"] == [True, True, False, True, True]
    assert case["updates"] == 4
    assert case["norms"][2] == float("inf")
    assert all(loss == loss for loss in case["losses"][3:]), "the step after is not finite"
    assert not any(case["overflowed"]), "a fault was taken for an overflow"
    assert len(set(case["scales"])) == 1, "the loss scale paid for it"


def test_an_overflow_lowers_the_scale_and_is_told_from_a_fault(two: Seen) -> None:
    seen = two["fp16 overflows"]
    left_out = seen["overflowed"].count(True)
    assert 0 < left_out < 5
    assert seen["overflowed"] == [True] * left_out + [False] * (5 - left_out)
    assert seen["applied"] == [not overflowed for overflowed in seen["overflowed"]]
    assert seen["scales"][-1] == 2.0 ** (18 - left_out)
    assert seen["updates"] == 5 - left_out


def test_the_loss_scale_is_resumed(two: Seen) -> None:
    scale = two["fp16 overflows"]["scales"][-1]
    assert two["fp16 1 to 3"]["scales"] == [scale] * 5
    assert two["fp16 1 to 3"]["applied"] == [True] * 5


def test_at_the_lowest_scale_an_overflow_is_a_fault_and_not_the_end_of_the_process(two: Seen) -> None:
    seen = two["fp16 at its lowest scale"]
    assert (seen["applied"], seen["overflowed"]) == ([False, False], [False, False])


@pytest.mark.slow
def test_the_self_test_knows_the_modes(rest: Seen) -> None:
    assert 1e-4 < rest["bf16 self-test"]["difference"] < 1e-2
    assert 1e-6 < rest["fp16 self-test"]["difference"] < 1e-2
    assert rest["stage 0 self-test"]["difference"] < 1e-4


def test_the_self_test_finds_a_fault_at_stage_0(two: Seen) -> None:
    assert "one step by engine zero (stage 0, float32, 2 ranks" in two["lost"]["error"]


@pytest.mark.slow
def test_one_rank(one: Seen) -> None:
    check(one, "stage 0 in 4 parts")
    check(one, "bf16 in 4 parts", BF16)


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began(one: Seen) -> None:
    check(one, "0 to plain", first=5)
    check(one, "0 to 2", first=5)
    check(one, "bf16 1 to 2", BF16, first=5)
    check(one, "bf16 to plain autocast", BF16, first=5)


@pytest.mark.slow
def test_four_ranks(four: Seen) -> None:
    check(four, "stage 0 in 3 parts")
    check(four, "plain to 0", first=10)
    check(four, "bf16", BF16)
    check(four, "bf16 1 to 3", BF16, first=5)
    check(four, "fp16 stage 2 in 3 parts", FLOAT16)

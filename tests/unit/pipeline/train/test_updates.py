"""The size of an update beside what it changes, against the same from whole tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.weights.files import load_weights
from model.zoo import create_model
from pipeline.config import OptimizerSettings
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.fragments import MASTER, Fragment
from pipeline.train.optim import make_groups, make_optimizer, rules
from pipeline.train.plain import PlainEngine
from pipeline.train.updates import before_update, update_ratio
from pipeline.train.worker import run
from pipeline.train.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))


def engine_with_gradients() -> PlainEngine:
    module = create_model("vit_ti8", num_classes=3, image_size=16, width=32, depth=2, heads=2, mlp=64)
    settings = OptimizerSettings(weight_decay=0.1)
    optimizer = make_optimizer(make_groups(module.named_parameters(), rules(settings)), settings)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return PlainEngine(module, optimizer, None, "float32")


@pytest.mark.parametrize(("most", "tolerance"), [(2**22, 1e-6), (5000, 0.1)])
def test_it_is_the_ratio_of_norms_over_all_parameters(most: int, tolerance: float) -> None:
    engine = engine_with_gradients()
    old = torch.cat([p.detach().clone().view(-1) for p in engine.module.parameters()])
    before = before_update(engine.fragments(), most)
    engine.step(1e-3)
    new = torch.cat([p.detach().view(-1) for p in engine.module.parameters()])
    expected = float((new - old).norm() / old.norm())
    assert update_ratio(before, engine.fragments(), ALONE) == pytest.approx(expected, rel=tolerance)
    assert sum(len(values) for values in before.values) <= 2 * most


def test_parts_of_all_ranks_count_as_one_whole() -> None:
    class Two(World):
        def sums(self, values: object) -> list[float]:
            return [3.0**2 + 4.0**2, 10.0**2]  # what both ranks found

    old = torch.ones(4)
    before = before_update([Fragment("a", MASTER, 0, old), Fragment("a", "exp_avg", 0, torch.ones(4))])
    assert len(before.values) == 1
    world = Two(0, 2, 0, torch.device("cpu"))
    assert update_ratio(before, [Fragment("a", MASTER, 0, old)], world) == pytest.approx(0.5)


def test_without_parameters_there_is_no_ratio() -> None:
    zeros = [Fragment("a", MASTER, 0, torch.zeros(4))]
    assert update_ratio(before_update(zeros), zeros, ALONE) != update_ratio(
        before_update(zeros), zeros, ALONE
    )


def test_a_training_reports_the_update_of_the_logged_step(
    run_dir: Path, add_job: Callable[..., JobDir]
) -> None:
    one = {"duration": "1 steps", "average": None, "optimizer": OptimizerSettings(learning_rate=1e-3)}
    still = {**one, "optimizer": OptimizerSettings(learning_rate=1e-30)}
    moved, stays = add_job("moved", **one), add_job("stays", **still)
    for job in (moved, stays):
        run(run_dir, job.path.name, device="cpu")
    new, old = (load_weights(job.weights)[0] for job in (moved, stays))
    changed = sum(float((new[name] - old[name]).square().sum()) for name in new)
    whole = sum(float(value.square().sum()) for value in old.values())
    [event] = [e for e in read_events(moved.events)[0] if e["event"] == "progress"]
    assert event["update_ratio"] == pytest.approx((changed / whole) ** 0.5, rel=1e-4)

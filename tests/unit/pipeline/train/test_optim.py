import math

import pytest
import torch

from model.zoo import create_model
from pipeline.config import OptimizerSettings
from pipeline.train.optim import create_state, learning_rate, make_groups, make_optimizer, moment_kinds, rules


def network() -> torch.nn.Module:
    return create_model("vit_ti8", num_classes=3, image_size=16, width=16, depth=1, heads=2, mlp=32)


def test_matrices_are_decayed_and_nothing_else() -> None:
    settings = OptimizerSettings(weight_decay=0.3, decay_all=False)
    matrices, others = make_groups(network().named_parameters(), rules(settings))
    assert (matrices.weight_decay, others.weight_decay) == (0.3, 0.0)
    assert "embedding.patch.weight" in matrices.names
    assert "head.weight" in matrices.names
    assert all(name.endswith("weight") for name in matrices.names)
    assert {"positions.table", "embedding.class_token", "norm.weight", "head.bias"} <= set(others.names)
    assert len(matrices.names) + len(others.names) == len(list(network().parameters()))


def test_the_paper_decays_everything() -> None:
    [group] = make_groups(network().named_parameters(), rules(OptimizerSettings(weight_decay=0.1)))
    assert group.weight_decay == 0.1
    assert len(group.names) == len(list(network().parameters()))


def test_a_parameter_that_matches_no_rule_or_two_is_our_bug() -> None:
    named = list(network().named_parameters())
    with pytest.raises(AssertionError, match=r"head.bias matches the rules \[\], expected exactly one"):
        make_groups(named[::-1], (("some", lambda name, p: name != "head.bias", 0.0),))
    twice = (("one", lambda name, p: True, 0.0), ("two", lambda name, p: "norm" in name, 0.0))
    with pytest.raises(AssertionError, match=r"matches the rules \['one', 'two'\]"):
        make_groups(named, twice)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_the_rate_rises_to_the_peak_and_ends_where_it_should(schedule: str) -> None:
    settings = OptimizerSettings(learning_rate=0.8, end_learning_rate=0.2, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(step, 100, 20, settings) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.8 / 20)
    assert rates[9] == pytest.approx(0.4)
    assert rates[19] == pytest.approx(0.8)
    assert max(rates) == pytest.approx(0.8)
    assert rates[-1] == pytest.approx(0.8 if schedule == "constant" else 0.2)
    middle = {"linear": 0.5, "cosine": 0.2 + 0.6 * 0.5 * (1 + math.cos(math.pi / 2)), "constant": 0.8}
    assert rates[59] == pytest.approx(middle[schedule])


def test_without_a_warm_up_the_first_step_is_at_the_start_of_the_decay() -> None:
    settings = OptimizerSettings(learning_rate=1.0, schedule="linear")
    assert [learning_rate(step, 4, 0, settings) for step in (1, 2, 3, 4)] == [0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_state_made_before_the_first_step_changes_nothing(name: str) -> None:
    """Checkpoints need the moments before torch would make them."""
    settings = OptimizerSettings(name=name, learning_rate=0.1, weight_decay=0.1)  # type: ignore[arg-type]
    results = []
    for early in (True, False):
        module = torch.nn.Linear(3, 3)
        with torch.no_grad():
            module.weight.fill_(0.5)
            module.bias.fill_(0.1)
        optimizer = make_optimizer(make_groups(module.named_parameters(), rules(settings)), settings)
        if early:
            for parameter in module.parameters():
                create_state(optimizer, parameter)
                assert set(moment_kinds(optimizer)) <= set(optimizer.state[parameter])
        for _ in range(3):
            module.zero_grad()
            module(torch.tensor([[1.0, -2.0, 0.5]])).square().sum().backward()
            optimizer.step()
        results.append(module.weight.detach().clone())
    assert torch.equal(*results)

"""Parameter groups, the optimizer, and the learning rate of a step.

Groups are made by rules, and every parameter must match exactly one; each rule is a predicate over
(name, parameter). The rate is a pure function of (step, settings) and is set by us before each step:
DeepSpeed's own schedules took group 0's rate for all groups (DeepSpeed #8171).

Sources: the paper's Table 3 and Appendix B.1 (Adam, decoupled weight decay times the rate, linear or
cosine decay, linear warm-up); `utils.py` of google-research/vision_transformer for the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerSettings

Rule = tuple[str, Callable[[str, nn.Parameter], bool], float]


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike."""

    name: str
    names: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    weight_decay: float
    rate_scale: float = 1.0  # times the rate of the step


def canonical(name: str) -> str:
    """A parameter's name in the module as it was built: without the prefixes that wrappers add."""
    return name.removeprefix("module.").replace("_orig_mod.", "")


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Kernels of linear layers and convolutions: what big_vision decays (`/kernel`); not the biases,
    norms, position tables and class token."""
    shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO-3 the parameter itself is empty
    return name.endswith("weight") and len(shape) >= 2


def rules(settings: OptimizerSettings) -> tuple[Rule, ...]:
    """(name of the group, which parameters, their weight decay)."""
    if settings.decay_all:
        return (("all", lambda name, parameter: True, settings.weight_decay),)
    return (
        ("matrices", is_matrix, settings.weight_decay),
        ("others", lambda name, parameter: not is_matrix(name, parameter), 0.0),
    )


def make_groups(named: Iterable[tuple[str, nn.Parameter]], chosen: tuple[Rule, ...]) -> list[Group]:
    """Sort parameters into groups; asserts that each matches exactly one rule. Empty groups are left out."""
    members: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name, _, _ in chosen}
    for name, parameter in named:
        matching = [group for group, matches, _ in chosen if matches(name, parameter)]
        assert len(matching) == 1, f"parameter {name} matches the rules {matching}, expected exactly one"
        members[matching[0]].append((canonical(name), parameter))
    return [
        Group(name, tuple(n for n, _ in members[name]), tuple(p for _, p in members[name]), decay)
        for name, _, decay in chosen
        if members[name]
    ]


def make_optimizer(groups: list[Group], settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Torch's fused AdamW or SGD; SGD's weight decay is the coupled one (an L2 term in the gradient)."""
    dictionaries: list[dict[str, Any]] = [
        {
            "params": list(g.parameters),
            "weight_decay": g.weight_decay,
            "name": g.name,
            "rate_scale": g.rate_scale,
        }
        for g in groups
    ]
    if settings.name == "adam":
        betas = (settings.beta1, settings.beta2)
        return torch.optim.AdamW(dictionaries, lr=settings.learning_rate, betas=betas, fused=True)
    return torch.optim.SGD(dictionaries, lr=settings.learning_rate, momentum=settings.momentum, fused=True)


def learning_rate(step: int, steps: int, warmup: int, settings: OptimizerSettings) -> float:
    """Rate of step number `step`, 1 … `steps`.

    It rises in a line to the peak at step `warmup`, and falls to `end_learning_rate` at the last
    step: peak × min(1, step ÷ warmup) × decay, with progress = (step − warmup) ÷ (steps − warmup).
    """
    rising = min(1.0, step / warmup) if warmup else 1.0
    progress = min(1.0, max(0.0, (step - warmup) / max(1, steps - warmup)))
    peak, end = settings.learning_rate, settings.end_learning_rate
    shapes = {
        "linear": lambda: peak + (end - peak) * progress,
        "cosine": lambda: end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": lambda: peak,
    }
    return rising * shapes[settings.schedule]()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate for the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def create_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
    """The optimizer's state of `parameter` before its first step, made now: zero moments, step 0.

    Torch makes it at the first step, too late for a checkpoint to be loaded into it. Zero moments
    give the same first step.
    """
    state: dict[str, torch.Tensor] = optimizer.state[parameter]
    if isinstance(optimizer, torch.optim.AdamW):
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros_like(parameter, requires_grad=False)
    elif optimizer.defaults["momentum"]:
        state["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return state


def moment_kinds(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that the optimizer keeps for each parameter."""
    if isinstance(optimizer, torch.optim.AdamW):
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if optimizer.defaults["momentum"] else ()

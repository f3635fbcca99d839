"""Parameter groups, the optimizer, and the learning rate of a step.

Groups are made by rules, and every parameter must match exactly one; each rule is a predicate over
(name, parameter). The rate is a pure function of (step, settings) and is set by us before each step:
DeepSpeed's own schedules took group 0's rate for all groups (DeepSpeed #8171).

Sources: the paper's Table 3 and Appendix B.1 (Adam, decoupled weight decay times the rate, linear or
cosine decay, linear warm-up); `utils.py` of google-research/vision_transformer for the formula.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.config import OptimizerSettings

Rule = tuple[str, Callable[[str, nn.Parameter], bool], float]
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)\.")
_ABOVE = ("norm.", "pool.", "pre_logits.", "head.", "prediction_head.")  # what stands after the last block


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
    """(name of the group, which parameters, their weight decay as AdamW takes it: times the rate)."""
    decay = settings.weight_decay
    if settings.decay_times == "schedule":
        decay /= settings.learning_rate
    if settings.decay_all:
        return (("all", lambda name, parameter: True, decay),)
    return (
        ("matrices", is_matrix, decay),
        ("others", lambda name, parameter: not is_matrix(name, parameter), 0.0),
    )


def make_groups(
    named: Iterable[tuple[str, nn.Parameter]], chosen: tuple[Rule, ...], layer_decay: float = 1.0
) -> list[Group]:
    """Sort parameters into groups; asserts that each matches exactly one rule. Empty groups are left out.

    With a `layer_decay` below 1 each rule gives one group for each layer.
    """
    everything = [(canonical(name), parameter) for name, parameter in named]
    layers = max((layer_of(name, 0) for name, _ in everything), default=0)
    members: dict[tuple[str, int], list[tuple[str, nn.Parameter]]] = {}
    decays = {name: decay for name, _, decay in chosen}
    for name, parameter in everything:
        matching = [group for group, matches, _ in chosen if matches(name, parameter)]
        assert len(matching) == 1, f"parameter {name} matches the rules {matching}, expected exactly one"
        depth = layers + 1 - layer_of(name, layers + 1) if layer_decay < 1 else 0
        members.setdefault((matching[0], depth), []).append((name, parameter))
    rank = {name: i for i, (name, _, _) in enumerate(chosen)}
    return [
        Group(
            group if layer_decay == 1 else f"{group}/{depth} below the top",
            tuple(name for name, _ in found),
            tuple(parameter for _, parameter in found),
            decays[group],
            layer_decay**depth,
        )
        for (group, depth), found in sorted(members.items(), key=lambda item: (rank[item[0][0]], item[0][1]))
    ]


def layer_of(name: str, top: int) -> int:
    """Layer of a parameter: 0 for what stands before the blocks, i + 1 for block i, `top` after them."""
    if name.removeprefix("backbone.").startswith(_ABOVE):
        return top
    found = _BLOCK.search(name)
    return int(found.group(1)) + 1 if found else 0


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


def learning_rate(
    step: int, steps: int, warmup: int, settings: OptimizerSettings, cooldown: int = 0
) -> float:
    """Rate of step number `step`, 1 … `steps`.

    It rises in a line to the peak at step `warmup`. "linear" and "cosine" fall to `end_learning_rate`
    at the last step: peak × min(1, step ÷ warmup) × decay, with progress = (step − warmup) ÷
    (steps − warmup). "rsqrt" is peak ÷ √(1 + (step − warmup) ÷ timescale) (big_vision `utils.py`), it
    and "constant" fall in a line to `end_learning_rate` over the last `cooldown` steps.
    """
    rising = min(1.0, step / warmup) if warmup else 1.0
    since = max(0, step - warmup)
    progress = min(1.0, since / max(1, steps - warmup))
    peak, end = settings.learning_rate, settings.end_learning_rate
    shapes = {
        "linear": lambda: peak + (end - peak) * progress,
        "cosine": lambda: end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress)),
        "constant": lambda: peak,
        "rsqrt": lambda: peak / math.sqrt(1 + since / settings.timescale),
    }
    rate = rising * shapes[settings.schedule]()
    left = min(1.0, (steps - step) / cooldown) if cooldown else 1.0
    return end + (rate - end) * left if cooldown else rate


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

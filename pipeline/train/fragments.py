"""Which contiguous slice of each parameter's flattened float32 master, and of each of its optimizer
moments, this rank owns: for plain PyTorch and for ZeRO stages 0 to 3. Each element has one owner.

    parameter "blocks.0.mlp.up.weight", flattened:   0 ............................ numel
    rank 0 owns                                      [start, start + n)
    rank 1 owns                                                       [start', …)

Fragments are views: writing into them changes the training state. After writing, call `refresh`, which
brings the working copies up to date. Names are those of the module as it was built.

The only place that touches private attributes of DeepSpeed (tested with 0.19.8; pipeline/train/zero.py
refuses versions outside of the tested range). Three silent traps are closed here: stages 1 and 2 link the
moments of the first group only, so we make all moments and link them right after initialisation
(`create_moments`); stage 3 keeps a working copy that goes stale when a master is written (`refresh`); with
bf16 or float16 parameters the masters start from rounded weights (`write_masters`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model.interface import Gather
from pipeline.train.optim import canonical, create_state, moment_kinds

MASTER = "master"


@dataclass(frozen=True)
class Fragment:
    """`data` is elements [start, start + len(data)) of the flattened tensor `kind` of parameter `name`."""

    name: str
    kind: str  # master, exp_avg, exp_avg_sq, momentum_buffer
    start: int
    data: torch.Tensor  # 1-d float32 view


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Whole shapes of all parameters by name; under ZeRO-3 the parameters themselves are empty."""
    return {
        canonical(name): tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
    }


# ---------------------------------------------------------------- plain PyTorch, and stage 0


def replicated_fragments(
    module: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0, size: int = 1
) -> list[Fragment]:
    """What rank `rank` owns where each of `size` ranks holds everything and the masters are the parameters:
    one range of all parameters laid end to end, so that each element has one owner, as at other stages."""
    return [
        Fragment(name, kind, first, whole[first:last])
        for name, kind, whole, first, last in _ranges(module, optimizer, rank, size)
    ]


@torch.no_grad()
def share_replicas(module: nn.Module, optimizer: torch.optim.Optimizer, size: int) -> None:
    """After owners wrote their fragments: give them to all ranks, all ranks together."""
    for owner in range(size if size > 1 else 0):
        for _, _, whole, first, last in _ranges(module, optimizer, owner, size):
            torch.distributed.broadcast(whole[first:last], owner)


def _ranges(
    module: nn.Module, optimizer: torch.optim.Optimizer, rank: int, size: int
) -> Iterator[tuple[str, str, torch.Tensor, int, int]]:
    """Name, kind, whole flattened tensor, and the elements of it that `rank` owns."""
    total = sum(parameter.numel() for parameter in module.parameters())
    begin, end = rank * total // size, (rank + 1) * total // size
    before = 0
    for name, parameter in module.named_parameters():
        first, last = (min(max(bound - before, 0), parameter.numel()) for bound in (begin, end))
        before += parameter.numel()
        if first < last:
            # detach, not data: the same memory, without the graph.
            yield canonical(name), MASTER, parameter.detach().view(-1), first, last
            for kind in moment_kinds(optimizer):
                yield canonical(name), kind, optimizer.state[parameter][kind].view(-1), first, last


# ---------------------------------------------------------------- DeepSpeed, stages 1 to 3


def create_moments(zero: Any) -> None:
    """Make the optimizer's state of every flat partition before the first step, and link it.

    Args:
        zero: DeepSpeed's ZeRO optimizer (`engine.optimizer`).
    """
    for flat in flat_partitions(zero):
        create_state(zero.optimizer, flat)
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed links after the first group's step, when the other groups have no state yet.
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def zero_fragments(module: nn.Module, zero: Any) -> list[Fragment]:
    """What this rank owns, whatever the stage."""
    find = _stage_3 if _is_stage_3(zero) else _stages_1_and_2
    return [
        Fragment(canonical(name), kind, start, tensor)
        for name, parameter in module.named_parameters()
        for kind, start, tensor in find(zero, parameter)
    ]


def set_updates(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Tell Adam how many updates have been applied; its bias correction depends on it."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"].fill_(updates)


def fill_masters(module: nn.Module, fragments: list[Fragment], fill: Callable[[Gather], None]) -> None:
    """Have `fill` write every parameter of a split module, and keep what this rank owns of it.

    One parameter is whole at a time, in float32, and nothing is sent: each rank writes the same. `refresh`
    must follow.
    """
    masters: dict[str, list[Fragment]] = {}
    for fragment in fragments:
        if fragment.kind == MASTER:
            masters.setdefault(fragment.name, []).append(fragment)
    found = {id(parameter): canonical(name) for name, parameter in module.named_parameters()}
    whole = shapes(module)

    @contextmanager
    def written(parameter: nn.Parameter) -> Iterator[None]:
        name = found[id(parameter)]
        kept = parameter.data
        parameter.data = torch.empty(whole[name], dtype=torch.float32, device=parameter.device)
        try:
            yield
            write_masters(masters.get(name, []), {name: parameter.detach()})
        finally:
            parameter.data = kept

    fill(written)


def write_masters(fragments: list[Fragment], weights: Mapping[str, torch.Tensor]) -> None:
    """Give the masters the unrounded float32 `weights`, whole and by name; `refresh` must follow."""
    for fragment in fragments:
        if fragment.kind == MASTER:
            whole = weights[fragment.name].view(-1)
            fragment.data.copy_(whole[fragment.start : fragment.start + len(fragment.data)])


def refresh(zero: Any) -> None:
    """After masters were written: bring the working copies that forward reads up to date, on all ranks."""
    if not _is_stage_3(zero):
        zero.update_lp_params()
        return
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        # Small parameters stay gathered between steps; without this they keep their old values. What is
        # gathered already is not gathered again, so they are given up first.
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def flat_partitions(zero: Any) -> list[torch.Tensor]:
    """This rank's flat float32 masters, one for each group (at stage 3: for each sub-group)."""
    names = (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # BF16_Optimizer: stage 1 with bf16 parameters
    )
    return list(next(getattr(zero, name) for name in names if hasattr(zero, name)))


def _stages_1_and_2(zero: Any, parameter: nn.Parameter) -> Iterator[tuple[str, int, torch.Tensor]]:
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # another rank owns all of it
        return
    flat = flat_partitions(zero)[mapping.param_group_index]
    here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
    assert here.numel == whole.numel, f"a fragment of {here.numel} elements maps to {whole.numel}"
    if here.numel == 0:
        return
    yield MASTER, whole.start, flat.detach().narrow(0, here.start, here.numel)
    for kind in moment_kinds(zero.optimizer):
        yield kind, whole.start, zero.optimizer.state[flat][kind].narrow(0, here.start, here.numel)


def _stage_3(zero: Any, parameter: nn.Parameter) -> Iterator[tuple[str, int, torch.Tensor]]:
    group, offset, partition = zero.grad_position[zero.get_param_id(parameter)]
    start = torch.distributed.get_rank() * partition
    owned = min(partition, parameter.ds_numel - start)  # type: ignore[attr-defined]
    if owned <= 0:  # the last ranks hold padding only
        return
    flat = zero.fp32_partitioned_groups_flat[group]
    yield MASTER, start, flat.detach().narrow(0, offset, owned)
    for kind in moment_kinds(zero.optimizer):
        yield kind, start, zero.optimizer.state[flat][kind].narrow(0, offset, owned)


# ---------------------------------------------------------------- the loss scale of float16

_SCALER = ("cur_scale", "cur_hysteresis", "cur_iter", "last_overflow_iter")


def loss_scaler(zero: Any) -> dict[str, float] | None:
    """State of DeepSpeed's dynamic loss scaler, the same on all ranks; None where there is none."""
    scaler = getattr(zero, "loss_scaler", None)  # BF16_Optimizer has none at all
    return {name: getattr(scaler, name) for name in _SCALER} if getattr(scaler, "dynamic", False) else None


def set_loss_scaler(zero: Any, state: Mapping[str, float]) -> None:
    for name in _SCALER:
        setattr(zero.loss_scaler, name, state[name])


def keep_at_lowest_scale(zero: Any) -> None:
    """An overflow at the lowest scale is a gradient that is not finite, for our own policy to judge;
    DeepSpeed would end the process."""
    if loss_scaler(zero) is not None:
        zero.loss_scaler.raise_error_at_min_scale = False

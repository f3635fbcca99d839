"""Which contiguous slice of each parameter's flattened float32 master, and of each of its optimizer
moments, lives on this rank: for plain PyTorch and for ZeRO stages 1, 2 and 3.

    parameter "blocks.0.mlp.up.weight", flattened:   0 ............................ numel
    rank 0 owns                                      [start, start + n)
    rank 1 owns                                                       [start', …)

Fragments are views: writing into them changes the training state. After writing, call `refresh`, which
brings the working copies up to date. Names are those of the module as it was built.

The only place that touches private attributes of DeepSpeed (tested with 0.19.8; pipeline/train/zero.py
refuses versions outside of the tested range). Two silent traps are closed here: stages 1 and 2 link the
moments of the first group only, so we make all moments and link them right after initialisation
(`create_moments`); stage 3 keeps a working copy that goes stale when a master is written (`refresh`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

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


# ---------------------------------------------------------------- plain PyTorch


def plain_fragments(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Fragment]:
    """One rank owns everything; the masters are the parameters."""
    kinds = moment_kinds(optimizer)
    found = []
    for name, parameter in module.named_parameters():
        # detach, not data: the same memory, without the graph.
        found.append(Fragment(canonical(name), MASTER, 0, parameter.detach().view(-1)))
        found += [
            Fragment(canonical(name), kind, 0, optimizer.state[parameter][kind].view(-1)) for kind in kinds
        ]
    return found


# ---------------------------------------------------------------- DeepSpeed, stages 1 to 3


def create_moments(zero: Any) -> None:
    """Make the optimizer's state of every flat partition before the first step, and link it.

    Args:
        zero: DeepSpeed's ZeRO optimizer (`engine.optimizer`).
    """
    for flat in _flat_partitions(zero):
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


def refresh(zero: Any) -> None:
    """After masters were written: bring the working copies that forward reads up to date, on all ranks."""
    if not _is_stage_3(zero):
        zero.update_lp_params()
        return
    for group in range(len(zero.fp32_partitioned_groups_flat)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        # Small parameters stay gathered between steps; without this they keep their old values.
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _flat_partitions(zero: Any) -> list[torch.Tensor]:
    flat = zero.fp32_partitioned_groups_flat if _is_stage_3(zero) else zero.single_partition_of_fp32_groups
    return list(flat)


def _stages_1_and_2(zero: Any, parameter: nn.Parameter) -> Iterator[tuple[str, int, torch.Tensor]]:
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:  # another rank owns all of it
        return
    flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
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

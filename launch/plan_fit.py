"""The setting nearest to a run's own that fits into a device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from launch.plan_memory import Load, Memory, memory_of
from model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Nearest:
    """Overrides for the command line, and what a rank takes with them; `overrides` empty: nothing fits."""

    overrides: tuple[str, ...]
    memory: Memory


def nearest_that_fits(config: ModelConfig, parameters: int, load: Load, limit: int, batch: int) -> Nearest:
    """The first setting that fits, from what costs nothing to what costs time.

    Order: a smaller micro-batch (more accumulation: the same result in the same time, while it is not
    tiny), then the next ZeRO stages (more communication), then activation checkpointing (a third more
    computing), each with the largest micro-batch that fits. A micro-batch below 8 is tried last.
    """
    least: Memory | None = None
    for floor in (8, 1):
        for engine in _engines(load):
            for micro_batch in _micro_batches(load.part, load.micro_batch, floor):
                changed = replace(load, engine=engine, micro_batch=micro_batch)
                memory = memory_of(config, parameters, changed)
                if memory.total <= limit:
                    return Nearest(_overrides(load, changed), memory)
                if least is None or memory.total < least.total:
                    least = memory
    assert least is not None, f"no micro-batch divides {load.part} of batch {batch}"
    return Nearest((), least)


def _engines(load: Load) -> Iterator[Any]:
    """The run's own, the next stages, then the same with activation checkpointing."""
    own = load.engine
    stages: list[int] = [own.stage]
    if own.kind == "zero" and load.world > 1:
        stages += range(own.stage + 1, 4)
    for checkpointing in sorted({own.activation_checkpointing, True}):
        for stage in stages:
            yield own.model_copy(update={"stage": stage, "activation_checkpointing": checkpointing})


def _micro_batches(part: int, largest: int, floor: int) -> Iterator[int]:
    """Divisors of a rank's part of the batch, from the present micro-batch down."""
    return (size for size in range(largest, 0, -1) if part % size == 0 and size >= min(floor, largest))


def _overrides(old: Load, new: Load) -> tuple[str, ...]:
    changes = []
    if new.micro_batch != old.micro_batch:
        changes.append(f"pretrain.micro_batch={new.micro_batch}")
    if new.engine.stage != old.engine.stage:
        changes.append(f"pretrain.engine.stage={new.engine.stage}")
    if new.engine.activation_checkpointing != old.engine.activation_checkpointing:
        changes.append("pretrain.engine.activation_checkpointing=true")
    return tuple(changes)

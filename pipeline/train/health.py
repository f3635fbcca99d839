"""Proof at start-up that the engine computes the step we think it does.

One step of a tiny network in the chosen configuration (ZeRO stage, precision, ranks, accumulation,
clipping, optimizer, groups) is compared with the same step by float32 PyTorch on the whole batch. It
finds what has gone wrong in released versions: gradients divided twice, the last micro-batch left out
of the average, clipping switched off, an extra update while initialising (field notes, DeepSpeed).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from pipeline.config import EngineSettings, OptimizerSettings
from pipeline.errors import TrainingError
from pipeline.train.engine import create_engine
from pipeline.train.fragments import MASTER
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.optim import make_groups, make_optimizer, rules
from pipeline.train.plain import PlainEngine
from pipeline.train.world import World

# Largest difference of update or norm, relative. float32: measured up to 4e-7 over stages, ranks and
# accumulation. bf16, with and without parameters in it: measured up to 4e-3, rounding; the smallest fault
# named above gives 2e-1.
TOLERANCE = {"float32": 1e-4, "bf16": 3e-2, "bf16_params": 3e-2, "fp16": 3e-2}
_OVERFLOWS = 40  # steps that may overflow before a loss scale fits; 2^16 falls to 1 in fewer
_FEATURES, _CLASSES = 24, 5
_RATE = 1e-2
# Adam's first update is hardly more than the gradient's sign: blind to its size, and unstable where it
# is near zero. With an epsilon this large the update is in proportion to the gradient.
_EPSILON = 1.0


class TinyNetwork(nn.Module):
    """Every kind of parameter that groups tell apart: matrices, biases, norms, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, _FEATURES))
        self.blocks = nn.ModuleList([nn.Linear(_FEATURES, _FEATURES) for _ in range(2)])
        self.norm = nn.LayerNorm(_FEATURES)
        self.head = nn.Linear(_FEATURES, _CLASSES)
        generator = torch.Generator().manual_seed(7)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(_FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.table
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        logits: torch.Tensor = self.head(self.norm(x))
        return logits

    def set_activation_checkpointing(self, on: bool) -> None:
        """Nothing to recompute in a network this small."""


def self_test(
    optimizer: OptimizerSettings, settings: EngineSettings, world: World, accumulation: int
) -> float:
    """One step in the chosen configuration against float32 PyTorch, on all ranks; the difference found.

    Raises TrainingError above the tolerance. At most 4 micro-batches are used.
    """
    accumulation = min(accumulation, 4)
    micro_batch = 2
    shape = BatchShape(world.size * micro_batch * accumulation, micro_batch, accumulation)
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(shape.batch, _FEATURES, generator=generator)
    y = torch.randint(_CLASSES, (shape.batch,), generator=generator)
    # Clipping must act, or it is not tested: the gradient's norm here is about 1.
    clip_norm = None if optimizer.clip_norm is None else min(optimizer.clip_norm, 0.3)
    clipped = optimizer.model_copy(update={"clip_norm": clip_norm})
    uncompiled = settings.model_copy(update={"compile": False})

    reference, norm = _reference_step(x, y, clipped)
    engine = create_engine(TinyNetwork(), clipped, uncompiled, shape, world)
    try:
        difference = _difference(_engine_step(engine, x, y, shape, world), reference, world)
        # Clipping hides the size of the gradient from the update.
        difference = max(difference, abs(engine.grad_norm() - norm) / norm)
    finally:
        engine.close()
    if not difference <= TOLERANCE[settings.precision]:
        raise TrainingError(
            f"self-test: one step by engine {settings.kind} (stage {settings.stage}, {settings.precision}, "
            f"{world.size} ranks, {accumulation} micro-batches) is off by {difference:.2g} of its length",
            f"at most {TOLERANCE[settings.precision]} from the same step by float32 PyTorch",
            "use the versions in constraints.txt or another engine.stage; self_test: false trains anyway",
        )
    return difference


def _reference_step(
    x: torch.Tensor, y: torch.Tensor, optimizer: OptimizerSettings
) -> tuple[dict[str, torch.Tensor], float]:
    """The update of each parameter, flattened, and the gradient's norm, by plain PyTorch on the CPU."""
    network = TinyNetwork()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    groups = make_groups(network.named_parameters(), rules(optimizer), optimizer.layer_decay)
    made = make_optimizer(groups, optimizer)
    engine = PlainEngine(network, made, optimizer.clip_norm, "float32")
    engine.backward(nn.functional.cross_entropy(engine.forward(x), y), last=True)
    _linear(engine)
    engine.step(_RATE)
    updates = {name: (p.detach() - before[name]).view(-1) for name, p in network.named_parameters()}
    return updates, engine.grad_norm()


def _linear(engine: Engine) -> None:
    for group in engine.optimizer.param_groups:
        if "eps" in group:
            group["eps"] = _EPSILON


def _engine_step(
    engine: Engine, x: torch.Tensor, y: torch.Tensor, shape: BatchShape, world: World
) -> dict[str, list[tuple[int, torch.Tensor]]]:
    """The update of each slice that this rank owns: name → (start, difference)."""
    masters = [f for f in engine.fragments() if f.kind == MASTER]
    before = [f.data.clone() for f in masters]
    part = slice(world.rank * shape.batch // world.size, (world.rank + 1) * shape.batch // world.size)
    images = torch.split(x[part].to(world.device), shape.micro_batch)
    labels = torch.split(y[part].to(world.device), shape.micro_batch)
    _linear(engine)
    for _ in range(_OVERFLOWS):
        for i in range(shape.accumulation):
            logits = engine.forward(images[i]).float()
            loss = nn.functional.cross_entropy(logits, labels[i], reduction="sum") / shape.batch
            engine.backward(loss, last=i == shape.accumulation - 1)
        engine.step(_RATE)
        if not engine.overflowed:
            break
    updates: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for fragment, old in zip(masters, before, strict=True):
        updates.setdefault(fragment.name, []).append((fragment.start, (fragment.data - old).cpu()))
    return updates


def _difference(
    updates: dict[str, list[tuple[int, torch.Tensor]]], reference: dict[str, torch.Tensor], world: World
) -> float:
    """‖update − reference‖ ÷ ‖reference‖ over all ranks; infinite if a slice has no owner."""
    distance, length, covered = 0.0, 0.0, 0.0
    for name, parts in updates.items():
        for start, update in parts:
            expected = reference[name][start : start + len(update)]
            distance += float((update - expected).double().square().sum())
            length += float(expected.double().square().sum())
            covered += len(update)
    distance, length, covered = world.sums([distance, length, covered])
    if covered != sum(len(expected) for expected in reference.values()):
        return math.inf
    return math.sqrt(distance / length) if length else math.inf

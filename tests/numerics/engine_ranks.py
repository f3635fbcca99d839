"""What each rank of test_engine.py runs: a tiny network trained in many configurations.

    python engine_ranks.py OUT.json CASES.json      with RANK, WORLD_SIZE, … in the environment

Rank 0 writes {case name: what was seen}. A case with "self_test" runs the start-up self-test, any other
trains `steps` steps; "load" and "save" are checkpoint directories.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F

from model.interface import Gather, ImageModel
from model.losses import loss_sum
from model.zoo import build, model_config
from pipeline.config import EngineSettings, OptimizerSettings
from pipeline.errors import TrainingError
from pipeline.train import zero
from pipeline.train.average import PolyakAverage
from pipeline.train.engine import create_engine, in_parts
from pipeline.train.fragments import MASTER, Fragment, shapes
from pipeline.train.health import self_test
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.loading import fill_from_newest
from pipeline.train.saving import Saver
from pipeline.train.world import World, join_world

BATCH, CLASSES, SIZE = 12, 5, 16
AVERAGED = 10  # steps that the reference averages over, with decay 0.6
OPTIMIZERS = {
    "adam": OptimizerSettings(
        name="adam", learning_rate=2e-3, weight_decay=0.1, decay_all=False, clip_norm=0.5
    ),
    "sgd": OptimizerSettings(name="sgd", learning_rate=0.05, momentum=0.9, clip_norm=0.5),
}


def network(initialise: bool = True) -> ImageModel:
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}
    # timm's scheme starts the head away from zero, so that every gradient counts from the first step.
    config = model_config("vit_ti8", num_classes=CLASSES, image_size=SIZE, scheme="timm", **sizes)
    return build(config, torch.Generator().manual_seed(3), initialise=initialise)


def network_in_parts(
    settings: EngineSettings, shape: BatchShape
) -> tuple[ImageModel, Callable[[Gather], None]]:
    """The same, which no rank ever holds whole."""
    with in_parts(settings, shape, None) as split:
        module = network(initialise=False)
    assert split, "nothing was split"
    assert all(parameter.numel() == 0 for parameter in module.parameters()), "a parameter is whole"
    return module, lambda gather: module.init_weights(torch.Generator().manual_seed(3), gather)


def batch_of(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels and weights of the whole batch; one sample has no weight."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    weights = torch.ones(BATCH)
    weights[step % BATCH] = 0.0
    return images, labels, weights


def reference(optimizer: str, steps: int) -> dict[str, Any]:
    """The same training as a bare PyTorch loop in float32."""
    settings = OPTIMIZERS[optimizer]
    module = network()
    matrices = [p for n, p in module.named_parameters() if n.endswith("weight") and p.ndim > 1]
    others = [p for n, p in module.named_parameters() if not (n.endswith("weight") and p.ndim > 1)]
    made: torch.optim.Optimizer
    if optimizer == "adam":
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        made = torch.optim.AdamW(groups, lr=settings.learning_rate)
    else:
        made = torch.optim.SGD(matrices + others, lr=settings.learning_rate, momentum=settings.momentum)
    losses, norms = [], []
    averaged = module.head.weight.detach().clone()
    for step in range(steps):
        images, labels, weights = batch_of(step)
        loss = (F.cross_entropy(module(images), labels, reduction="none") * weights).sum() / weights.sum()
        made.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(module.parameters(), settings.clip_norm or 0.0).item())
        made.step()
        losses.append(loss.item())
        if step < AVERAGED:
            decay = min(0.6, (2 + step) / (11 + step))
            averaged = decay * averaged + (1 - decay) * module.head.weight.detach()
    return {"losses": losses, "norms": norms, "average": averaged.flatten().tolist()}


def run_case(case: dict[str, Any], world: World) -> dict[str, Any]:
    accumulation = case.get("accumulation", 1)
    shape = BatchShape(BATCH, BATCH // world.size // accumulation, accumulation)
    settings = EngineSettings(**case.get("engine", {}))
    optimizer = OPTIMIZERS[case.get("optimizer", "adam")]
    module_start = network().head.weight.detach().flatten().tolist()
    module, fill = network_in_parts(settings, shape) if case.get("in parts") else (network(), None)
    whole = shapes(module)
    engine = create_engine(module, optimizer, settings, shape, world, fill)
    average = PolyakAverage(engine.fragments(), case["average"]) if "average" in case else None
    seen: dict[str, Any] = {}
    first = 0
    # Each case compiles anew: past eight variants of a block PyTorch gives up and says nothing.
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    try:
        if "start" in case:
            masters = [f for f in engine.fragments() if f.kind == MASTER]
            seen["start"] = whole_tensor(masters, "head.weight", world)
            seen["expected start"] = module_start
        if "load" in case:
            first = load(engine, average, case["load"], whole, world)
        if "back to" in case:
            run_steps(engine, average, first, case, shape, world)
            first = load(engine, average, case["back to"], whole, world)
        if case.get("linked"):
            seen["linked"] = linked(engine)
        seen |= run_steps(engine, average, first, case, shape, world)
        seen["graphs"] = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        if average is not None:
            seen["average"] = whole_tensor(average.fragments, "head.weight", world)
        if "save" in case:
            saver = Saver(Path(case["save"]), world, 2, lambda: None, lambda event: None)
            record = {
                "updates": engine.updates,
                "loss_scaler": engine.loss_scaler(),
                "shapes": {n: list(s) for n, s in whole.items()},
            }
            owned = engine.fragments() + (average.fragments if average else [])
            saver.start(first + case["steps"], owned, record, {})
            saver.finish()
    finally:
        engine.close()
    return seen


def load(
    engine: Engine,
    average: PolyakAverage | None,
    directory: str,
    whole: dict[str, tuple[int, ...]],
    world: World,
) -> int:
    """Load the newest checkpoint; the steps done in it."""
    owned = engine.fragments() + (average.fragments if average else [])
    checkpoint = fill_from_newest(Path(directory), owned, whole, world, lambda message: None)
    assert checkpoint is not None, f"nothing to load in {directory}"
    engine.loaded(checkpoint.record["updates"], checkpoint.record["loss_scaler"])
    return checkpoint.step


def whole_tensor(fragments: list[Fragment], name: str, world: World) -> list[float]:
    """All elements of one parameter's slices, from all ranks."""
    mine = [(f.start, f.data.tolist()) for f in fragments if f.name == name]
    return [x for _, part in sorted(part for rank in world.gather(mine) for part in rank) for x in part]


def run_steps(
    engine: Engine,
    average: PolyakAverage | None,
    first: int,
    case: dict[str, Any],
    shape: BatchShape,
    world: World,
) -> dict[str, Any]:
    rate = OPTIMIZERS[case.get("optimizer", "adam")].learning_rate
    losses, norms, applied, overflowed, scales = [], [], [], [], []
    for step in range(first, first + case["steps"]):
        images, labels, weights = batch_of(step)
        if case.get("poison") == step and world.rank == world.size - 1:
            weights = weights * float("nan")
        mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
        parts = [tensor[mine].split(shape.micro_batch) for tensor in (images, labels, weights)]
        total = 0.0
        for i, (x, y, w) in enumerate(zip(*parts, strict=True)):
            share = loss_sum("softmax", engine.forward(x), y, weight_B=w) / weights.sum()
            engine.backward(share, last=i == shape.accumulation - 1)
            total += share.item()
        losses.append(world.sums([total])[0])
        applied.append(engine.step(rate, finite=math.isfinite(losses[-1])))
        overflowed.append(engine.overflowed)
        scales.append((engine.loss_scaler() or {}).get("cur_scale"))
        if average is not None:
            average.update(engine.updates)
        norms.append(engine.grad_norm())
    return {
        "losses": losses,
        "norms": norms,
        "applied": applied,
        "overflowed": overflowed,
        "scales": scales,
        "updates": engine.updates,
    }


def linked(engine: Engine) -> bool:
    """Whether DeepSpeed itself finds the moments of every parameter, of both groups, before a step."""
    return all(
        zero.deepspeed.utils.safe_get_full_optimizer_state(parameter, "exp_avg_sq") is not None
        for parameter in engine.module.parameters()
    )


def run_self_test(case: dict[str, Any], world: World) -> dict[str, Any]:
    """The start-up self-test, on an engine with the named fault if the case has one."""
    kind = zero.ReplicatedEngine if case.get("engine", {}).get("stage") == 0 else zero.ZeroEngine
    backward = kind.backward
    faults = {
        "averaged twice": lambda self, loss, *, last: backward(self, loss / world.size, last=last),
        "lost": lambda self, loss, *, last: backward(self, loss * (not last), last=last),
    }
    if "fault" in case:
        kind.backward = faults[case["fault"]]
    optimizer = OPTIMIZERS[case.get("optimizer", "adam")]
    settings = EngineSettings(**case.get("engine", {}))
    try:
        return {"difference": self_test(optimizer, settings, world, case.get("accumulation", 1))}
    except TrainingError as error:
        return {"error": str(error)}
    finally:
        kind.backward = backward


def float16_on_processors() -> None:
    """DeepSpeed asks oneDNN whether the processor has float16 instructions; PyTorch computes without them
    too, slowly, so only the question is answered for it."""
    zero.deepspeed.accelerator.get_accelerator().is_fp16_supported = lambda: True


def main() -> None:
    out, cases = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    if any(case.get("engine", {}).get("precision") == "fp16" for case in cases):
        float16_on_processors()
    with join_world("cpu", needs_group=True, leave=False) as world:
        seen: dict[str, Any] = {name: reference(name, 28) for name in OPTIMIZERS}
        for case in cases:
            seen[case["name"]] = (run_self_test if case.get("self_test") else run_case)(case, world)
        if world.rank == 0:
            out.write_text(json.dumps(seen))
        world.barrier()


if __name__ == "__main__":
    main()
    os._exit(0)  # taking gloo's threads apart can only fail, as in pipeline/train/worker.py

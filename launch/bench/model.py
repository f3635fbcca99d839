"""Times our ViT against timm's and torchvision's: forward and backward, side by side in one process.

    python -m launch.bench.model --model vit_s16 --batch 32 --device cuda --dtype bfloat16 --compile

Every round runs each contender once on the same images, in rotating order, so that a machine that gets busier
or hotter slows all of them alike; ratios are taken within a round and their median is printed. Processor time
stands beside wall time because other people's work does not change it. Memory is what the backward pass keeps
(CPU) or the peak (CUDA). timm and torchvision are the peers; install them first.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from launch.bench.tables import print_rows, write_rows
from model.config import ViTConfig
from model.zoo import build, model_config

OURS = ("ours", "ours-erf")  # the authors' GELU, and the peers' one: the same arithmetic as theirs
PEERS = ("timm", "torchvision")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured."""

    name: str  # a name of the zoo, without stem
    batch: int  # images a step
    rounds: int  # steps of each contender that count
    device: str  # cpu or cuda
    dtype: torch.dtype  # float32, or bfloat16 by autocast
    compiled: bool


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one step, one entry a round, and bytes."""

    wall_s: list[float]
    processor_s: list[float]
    memory_bytes: int


def measure(setting: Setting) -> dict[str, Times]:
    """Runs all contenders, in rotating order, and gives the times of each."""
    config = model_config(setting.name, num_classes=1000)
    if not isinstance(config, ViTConfig) or config.stem is not None:
        raise ValueError(
            f"{setting.name} has no counterpart in both peers; choose a plain ViT, such as vit_s16"
        )
    steps = {name: _step(model, setting) for name, model in contenders(config).items()}
    images = torch.rand(setting.batch, 3, *config.image_size, device=setting.device) * 2 - 1
    memory = {name: _memory(step, images, setting.device) for name, step in steps.items()}  # warms up, too
    wall: dict[str, list[float]] = {name: [] for name in steps}
    processor: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for _ in range(setting.rounds):
        for name in order:
            wall_s, processor_s = _time(steps[name], images, setting.device)
            wall[name].append(wall_s)
            processor[name].append(processor_s)
        order = order[1:] + order[:1]
    return {name: Times(wall[name], processor[name], memory[name]) for name in steps}


def contenders(config: ViTConfig) -> dict[str, nn.Module]:
    """Four models of one shape; each library's own defaults otherwise, no dropout anywhere."""
    rows, size = config.patch[0], config.image_size[0]
    timm_vit = import_module("timm.models.vision_transformer").VisionTransformer
    torchvision_vit = import_module("torchvision.models").VisionTransformer
    erf = model_config(config.name, num_classes=config.num_classes, gelu="erf")
    return {
        "ours": build(config),
        "ours-erf": build(erf),
        "timm": timm_vit(
            img_size=size,
            patch_size=rows,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            mlp_ratio=config.mlp / config.width,
        ),
        "torchvision": torchvision_vit(size, rows, config.depth, config.heads, config.width, config.mlp),
    }


def _step(model: nn.Module, setting: Setting) -> Callable[[Tensor], None]:
    model = model.to(setting.device).train()
    run = torch.compile(model) if setting.compiled else model
    autocast = torch.autocast(setting.device, setting.dtype, enabled=setting.dtype != torch.float32)

    def step(images: Tensor) -> None:
        with autocast:
            logits = run(images)
        logits.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    return step


def _time(step: Callable[[Tensor], None], images: Tensor, device: str) -> tuple[float, float]:
    _wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    step(images)
    _wait(device)
    return time.perf_counter() - wall, time.process_time() - processor


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(step: Callable[[Tensor], None], images: Tensor, device: str) -> int:
    if device == "cuda":
        step(images)
        torch.cuda.reset_peak_memory_stats()
        step(images)
        return torch.cuda.max_memory_allocated()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(images)
    return sum(kept.values())


def ratios(times: Mapping[str, Times], kind: str, against: str, name: str) -> list[float]:
    """`name` over `against`, round by round; `kind` is wall_s or processor_s."""
    pairs = zip(getattr(times[name], kind), getattr(times[against], kind), strict=True)
    return [one / other for one, other in pairs]


def table(times: Mapping[str, Times]) -> list[dict[str, str]]:
    """One row a contender: median seconds, ratios to each peer (below 1 is faster), memory."""
    rows = []
    for name, found in times.items():
        row = {
            "model": name,
            "wall_s": f"{statistics.median(found.wall_s):.3f}",
            "processor_s": f"{statistics.median(found.processor_s):.3f}",
        }
        for peer in PEERS:
            for kind in ("wall_s", "processor_s"):
                ratio = statistics.median(ratios(times, kind, peer, name))
                row[f"{kind.removesuffix('_s')}/{peer}"] = f"{ratio:.3f}"
        rows.append({**row, "memory_MB": f"{found.memory_bytes / 1e6:.0f}"})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the command line says and prints a table; writes it as CSV if asked."""
    parser = argparse.ArgumentParser(prog="python -m launch.bench.model", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="vit_s16")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of PyTorch on the CPU")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    dtype = torch.float32 if given.dtype == "float32" else torch.bfloat16
    setting = Setting(given.model, given.batch, given.rounds, given.device, dtype, given.compile)
    rows = table(measure(setting))
    print(f"{setting}\ntorch {torch.__version__}, {_machine(given.device)}, {given.threads} threads")
    print_rows(rows)
    if given.csv:
        write_rows(given.csv, rows)


def _machine(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()


if __name__ == "__main__":
    main(sys.argv[1:])

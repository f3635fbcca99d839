"""Our training loop beside loops of PyTorch alone, and its memory beside what `vitline plan` says.

    vitline bench train --csv train.csv                                    processors; one and two ranks
    vitline bench train --gpu --photos tests/data/photos --csv gpu.csv     one GPU: MFU of B/16, L/16 and H/14

- `speed`: images/s of our whole loop (real shards, decoding, checks, reports), over those of a bare loop with
  the same model, loss and optimizer (one rank) and of DistributedDataParallel (`--ranks`), on images that lie
  ready in memory; with `--gpu` of timm's model, compiled whole. Blocks of steps in turn, in the same
  processes; the ratio is taken within a pair of blocks, and the median is shown. `processor`: the same ratio
  of processor time, which other people's work changes little; waiting for other ranks is not in it.
- `memory`: peak of rank 0 by ZeRO stage over the plan's, with a save on the way; of a process, with `--gpu`
  of what PyTorch allocated, against the plan without its reserve.

MFU: images/s × operations of an image ÷ the device's peak (pipeline/train/peaks.py); none on processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launch.bench.ranks import on_ranks, run_job, write_drawings, write_photos
from launch.bench.tables import print_rows, scratch, write_rows
from launch.plan_memory import Load, memory_of, moments_of
from model.flops import count_parameters
from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    ModelSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.data.mixture import open_data
from pipeline.errors import UserError
from pipeline.rundir import read_json, write_json
from pipeline.train.network import network_of

GPU_MODELS = {
    "vit_b16": 256,
    "vit_l16": 128,
    "vit_h14": 64,
}  # images a step that fit into 80 GB beside a peer
_MEMORY_STEPS = 6


def settings_of(model: str, engine: dict[str, Any], batch: int, steps: int, given: argparse.Namespace) -> Any:
    """Of our training: reports after each block of steps, saves nothing on the way."""
    precision = "bf16" if given.gpu else "float32"
    return TrainSettings(
        model=ModelSettings(name=model),
        image_size=given.image_size,
        duration=f"{steps} steps",
        batch=batch,
        engine=EngineSettings.model_validate(
            {"self_test": False, "precision": precision, "compile": given.gpu and not given.eager, **engine}
        ),
        threads=given.threads,
        log_every=f"{given.block} steps",
        log_samples=False,
    )


def speed(
    model: str,
    engine: dict[str, Any],
    peer: str,
    ranks: int,
    batch: int,
    given: argparse.Namespace,
    run: Path,
) -> dict[str, str]:
    """One row: our loop against one peer, in processes of their own."""
    steps = (given.blocks + 1) * given.block
    settings = settings_of(model, engine, batch, steps, given)
    job = TrainJob(data=DataView(path="data", split="train"), settings=settings, seed=0)
    directory = run / "jobs" / f"{model}-{name_of(engine)}-{peer}-{ranks}"
    out = directory / "measured.json"
    case = {"job": job.model_dump(mode="json"), "run": str(run), "peer": peer, "block": given.block}
    case |= {"blocks": given.blocks, "device": given.device, "out": str(out)}
    write_json(directory / "case.json", case)
    on_ranks(ranks, "launch.bench.train_rank", [str(directory / "case.json")], given.device)
    found = read_json(out)
    assert found is not None, f"the ranks ended without {out}"
    return speed_row(found, model, f"{name_of(engine)} against {peer}", ranks, batch * given.block)


def speed_row(found: dict[str, Any], model: str, what: str, ranks: int, images: int) -> dict[str, str]:
    """Medians of images/s, the median of the ratios of neighbours (above 1: ours is faster), and MFU."""
    ours_s, peer_s = found["ours_s"], found["peer_s"]
    ours, beside = (images / statistics.median(seconds) for seconds in (ours_s, peer_s))
    ratios = [theirs / own for own, theirs in zip(ours_s, peer_s, strict=True)]
    pairs = zip(found["ours_processor_s"], found["peer_processor_s"], strict=True)
    processor = statistics.median(theirs / own for own, theirs in pairs)
    top = found["top_images_per_s"]
    mfu, peer_mfu = (f"{rate / ranks / top:.3f}" if top else "" for rate in (ours, beside))
    return {
        "what": f"speed, {what}",
        "model": model,
        "ranks": str(ranks),
        "unit": "images/s",
        "ours": f"{ours:.4g}",
        "beside": f"{beside:.4g}",
        "ratio": f"{statistics.median(ratios):.3f}",
        "from": f"{min(ratios):.3f}",
        "to": f"{max(ratios):.3f}",
        "processor": f"{processor:.3f}",
        "mfu": mfu,
        "peer's mfu": peer_mfu,
    }


def memory(
    model: str, stage: int, ranks: int, batch: int, given: argparse.Namespace, run: Path
) -> dict[str, str]:
    """One row: the peak of rank 0 after a few steps, over what the plan says."""
    settings = settings_of(model, {"stage": stage}, batch, _MEMORY_STEPS, given)
    # What a save copies stays, and the steps after it come on top.
    saves = CheckpointSettings(every=f"{_MEMORY_STEPS // 2} steps", keep=1)
    settings = settings.model_copy(update={"checkpoint": saves})
    name = f"memory-{model}-{stage}"
    events = run_job(run, name, DataView(path="data", split="train"), settings, ranks, given.device)
    peak = max(float(event["memory_mib"]) for event in events if event["event"] == "progress")
    classes = open_data(DataView(path="data", split="train"), run).num_classes
    planned = planned_mib(settings, classes, ranks, given.gpu)
    return {
        **dict.fromkeys(("from", "to", "processor", "mfu", "peer's mfu"), ""),
        "what": f"memory, zero-{stage}",
        "model": model,
        "ranks": str(ranks),
        "unit": "MiB",
        "ours": f"{peak:.0f}",
        "beside": f"{planned:.0f}",
        "ratio": f"{peak / planned:.3f}",
    }


def planned_mib(settings: TrainSettings, classes: int, ranks: int, gpu: bool) -> float:
    """Peak of one rank as `vitline plan` reckons it; of a GPU without context and fragmentation, which
    PyTorch does not count as allocated."""
    config = network_of(settings.model, settings.image_size, classes)
    part = settings.batch // ranks
    load = Load(part, part, ranks, settings.engine, moments_of(settings), gpu)
    found = memory_of(config, count_parameters(config), load)
    return (found.total - (found.reserve if gpu else 0)) / 2**20


def name_of(engine: dict[str, Any]) -> str:
    return "plain" if engine.get("kind") == "plain" else f"zero-{engine.get('stage', 1)}"


def measure(given: argparse.Namespace, run: Path) -> list[dict[str, str]]:
    """All rows, in order. Each is told, and the CSV file written anew, as soon as it is there: what was
    measured until a machine is taken away is kept."""
    if given.photos:
        write_photos(run, given.photos)
    else:
        write_drawings(run, given.image_size)
    rows: list[dict[str, str]] = []
    for measured in cases(given, run):
        began = time.monotonic()
        rows.append(row := measured())
        print(
            f"{row['what']}, {row['model']}: {row['ratio']}, in {time.monotonic() - began:.0f} s", flush=True
        )
        if given.csv:
            write_rows(given.csv, rows)
    return rows


def cases(given: argparse.Namespace, run: Path) -> list[Callable[[], dict[str, str]]]:
    """What there is to measure."""
    engine: dict[str, Any] = {"kind": "plain"} if given.engine == "plain" else {"stage": 1}
    plain: dict[str, Any] = {"kind": "plain"}
    against: list[tuple[str, int, dict[str, Any], str, int]]
    if given.gpu:
        pairs = zip(given.models, given.batches, strict=True)
        against = [(model, batch, engine, "timm", 1) for model, batch in pairs]
    else:
        model, batch = given.models[0], given.batches[0]
        against = [(model, batch, plain, "bare", 1)]
        if given.engine == "zero":
            against += [(model, batch, engine, "bare", 1), (model, batch, engine, "ddp", given.ranks)]
    return [
        *(
            partial(speed, model, settings, peer, ranks, batch, given, run)
            for model, batch, settings, peer, ranks in against
        ),
        *(
            partial(memory, given.memory_model, stage, given.ranks, given.memory_batch, given, run)
            for stage in given.memory_stages
        ),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures as the command line says and prints a table; writes it as CSV if asked."""
    given = options(arguments)
    print(f"torch {torch.__version__}, {machine(given)}, load {os.getloadavg()[0]:.1f}", flush=True)
    with scratch(given.work) as place:
        rows = measure(given, place)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    print_rows(rows)


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Raises UserError for options that do not go together."""
    parser = argparse.ArgumentParser(prog="vitline bench train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--gpu", action="store_true", help="one GPU, bf16, compiled blocks, against timm")
    parser.add_argument(
        "--eager", action="store_true", help="with --gpu: neither ours nor timm's is compiled"
    )
    parser.add_argument("--engine", choices=("zero", "plain"), default="zero", help="plain: no DeepSpeed")
    parser.add_argument("--models", nargs="+", help="default: vit_ti16; with --gpu B/16, L/16 and H/14")
    parser.add_argument("--batches", nargs="+", type=int, help="of each model, over all ranks")
    parser.add_argument("--image-size", type=int, help="default: 96; with --gpu 224")
    parser.add_argument(
        "--ranks", type=int, default=2, help="against DistributedDataParallel, and for memory"
    )
    parser.add_argument("--block", type=int, default=5, help="steps in a row")
    parser.add_argument("--blocks", type=int, default=8, help="that count")
    parser.add_argument("--threads", type=int, help="that decode; default: 1, with --gpu cores - 2")
    parser.add_argument(
        "--memory-stages", nargs="*", type=int, choices=(1, 2, 3), help="default: all; --gpu: 1"
    )
    parser.add_argument("--memory-model", help="default: vit_s16; with --gpu vit_b16")
    parser.add_argument("--memory-batch", type=int, help="over all ranks; default: 16, with --gpu 64")
    parser.add_argument("--photos", type=Path, help="JPEGs in train/CLASS and test/CLASS; default: drawings")
    parser.add_argument("--work", type=Path, help="where shards lie; default: the temporary directory")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args(arguments)
    known = GPU_MODELS if given.gpu else {"vit_ti16": 32}
    given.models = given.models or list(known)
    given.batches = given.batches or [known.get(model, 32) for model in given.models]
    given.image_size = given.image_size or (224 if given.gpu else 96)
    given.threads = given.threads or (max(1, (os.cpu_count() or 1) - 2) if given.gpu else 1)
    if given.memory_stages is None:
        given.memory_stages = [1] if given.gpu else [1, 2, 3]
    given.memory_model = given.memory_model or ("vit_b16" if given.gpu else "vit_s16")
    given.memory_batch = given.memory_batch or (64 if given.gpu else 16)
    given.device = "cuda" if given.gpu else "cpu"
    if given.gpu:
        given.ranks = 1
    if given.engine == "plain":
        given.memory_stages = []
    check(given)
    return given


def check(given: argparse.Namespace) -> None:
    if given.gpu and not torch.cuda.is_available():
        raise UserError("--gpu, and no GPU that PyTorch can use", "a CUDA device", "leave --gpu out here")
    if given.eager and not given.gpu:
        raise UserError("--eager without --gpu", "--gpu, which compiles", "leave --eager out")
    if len(given.models) != len(given.batches):
        raise UserError(
            f"{len(given.models)} models and {len(given.batches)} batches",
            "one batch a model",
            "correct --batches",
        )
    if not given.gpu and len(given.models) > 1:
        raise UserError(f"{len(given.models)} models without --gpu", "one", "name one, or add --gpu")


def machine(given: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if given.gpu else f"{os.cpu_count()} cores"


if __name__ == "__main__":
    main(sys.argv[1:])

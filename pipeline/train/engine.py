"""The choice between the engines.

plain (plain.py)   PyTorch on one rank; the reference of the self-test, and what small jobs use
zero  (zero.py)    DeepSpeed on any number of ranks: ZeRO stages 1 to 3, and stage 0, which splits nothing
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from model.interface import Gather
from pipeline.config import EngineSettings, OptimizerSettings
from pipeline.errors import ConfigError
from pipeline.train.fragments import fill_masters
from pipeline.train.interface import BatchShape, Engine
from pipeline.train.optim import make_groups, make_optimizer, rules
from pipeline.train.plain import PlainEngine
from pipeline.train.world import World


@contextmanager
def in_parts(settings: EngineSettings, shape: BatchShape, clip_norm: float | None) -> Iterator[bool]:
    """While inside, a module is split over ranks as it is built, parameter by parameter, where the engine
    splits parameters (ZeRO-3): no rank ever holds it whole. Says whether that is so."""
    if settings.kind == "plain" or settings.stage < 3:
        yield False
        return
    with _import_zero().partitioned(settings, shape, clip_norm):
        yield True


def create_engine(
    module: nn.Module,
    optimizer: OptimizerSettings,
    settings: EngineSettings,
    shape: BatchShape,
    world: World,
    fill: Callable[[Gather], None] | None = None,
) -> Engine:
    """Put `module` into the engine that the settings ask for, on this rank's device.

    `fill` writes the starting weights of a module that was built `in_parts`, whose parameters are empty.
    """
    if settings.activation_checkpointing:
        module.set_activation_checkpointing(True)  # type: ignore[operator]
    if settings.compile:
        _compile_blocks(module)
    if not settings.rounds_parameters and fill is None:
        module.to(world.device)  # else DeepSpeed does it, of what is left after rounding or splitting
    groups = make_groups(module.named_parameters(), rules(optimizer), optimizer.layer_decay)
    made = make_optimizer(groups, optimizer)
    if settings.kind == "plain":
        if world.size > 1:
            raise ConfigError(
                f"engine.kind plain on {world.size} ranks",
                "one rank",
                "set engine.kind to zero, or workers to 1",
            )
        return PlainEngine(module, made, optimizer.clip_norm, settings.precision)
    zero = _import_zero()
    kind = zero.ReplicatedEngine if settings.stage == 0 else zero.ZeroEngine
    engine: Engine = kind(module, made, optimizer.clip_norm, settings, shape, world)
    if fill is not None:
        fill_masters(module, engine.fragments(), fill)
        engine.loaded(0)
    _give_back_memory()
    return engine


def _give_back_memory() -> None:
    """Return what is free to the system. glibc keeps the small pieces that a network was built and split in,
    which what steps need does not fit into: 75 MiB of ViT-S at stage 3 (docs/results/train-speed.md)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)


def _compile_blocks(module: nn.Module) -> None:
    """Compile block by block, in place: one graph serves all blocks, and names stay as they are."""
    for block in module.blocks:  # type: ignore[union-attr]
        block.compile()


@contextmanager
def _absent(package: str) -> Iterator[None]:
    """While inside, importing `package` fails as if it were not installed; one that is imported stays."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def _import_zero() -> Any:
    """Import DeepSpeed late and silently: it costs 2 s that jobs with the plain engine do not pay."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    level = logging.getLogger().level
    # Only DeepSpeed's tuner uses MLflow, which it imports whole: 1.3 s of the 1.5 s that a rank waits here.
    with _absent("mlflow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = importlib.import_module("pipeline.train.zero")
    logging.getLogger().setLevel(level)
    # DeepSpeed calls collectives by names that PyTorch has deprecated, several times a step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return zero

"""The loops that ours is held against: PyTorch alone, on images that lie ready in memory.

    bare   our model, AdamW, clipping; one rank
    ddp    the same under DistributedDataParallel, on any number of ranks
    timm   timm's model of the same shape, with timm's own defaults otherwise; one rank

None of them reads, decodes, logs, checks or saves anything, and no loss is looked at: what ours does beside
these steps is what the comparison counts.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from model.config import ViTConfig
from model.zoo import build
from pipeline.config import TrainSettings
from pipeline.errors import UserError
from pipeline.train.network import network_of
from pipeline.train.world import World

PEERS = ("bare", "ddp", "timm")


def peer_step(name: str, settings: TrainSettings, classes: int, world: World) -> Callable[[], None]:
    """One step of a peer on this rank's part of a batch."""
    config = network_of(settings.model, settings.image_size, classes)
    if name == "timm" and (not isinstance(config, ViTConfig) or config.stem is not None):
        raise UserError(f"{settings.model.name}", "a plain ViT, which timm has too", "choose one, as vit_b16")
    module: nn.Module = (
        timm_model(config) if isinstance(config, ViTConfig) and name == "timm" else build(config)
    )
    module.to(world.device).train()
    if name == "ddp":
        ids = None if world.device.type == "cpu" else [world.device.index]
        module = DistributedDataParallel(module, device_ids=ids)
    run = torch.compile(module) if settings.engine.compile else module
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=settings.optimizer.learning_rate, weight_decay=0.0, fused=True
    )
    part = settings.batch // world.size
    size = settings.image_size
    pixels = torch.randint(0, 256, (part, 3, size, size), dtype=torch.uint8, device=world.device)
    labels = torch.randint(0, classes, (part,), device=world.device)
    bf16 = settings.engine.precision == "bf16"

    def step() -> None:
        images = (pixels.float() - 127.5) / 127.5
        with torch.autocast(world.device.type, torch.bfloat16, enabled=bf16):
            logits = run(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        if settings.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timm_model(config: ViTConfig) -> nn.Module:
    """timm's Vision Transformer of this shape."""
    made: nn.Module = import_module("timm.models.vision_transformer").VisionTransformer(
        img_size=config.image_size[0],
        patch_size=config.patch[0],
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp / config.width,
        num_classes=config.num_classes,
    )
    return made

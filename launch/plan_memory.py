"""Memory of one rank, in parts, before anything starts.

States, in bytes, for P parameters, W ranks and k moments (Adam 2, SGD with momentum 1, one more for a Polyak
average). Masters, moments and sums of gradients are float32 in every precision; so are parameters, but in
bf16_params and fp16 (2P then, not 4P):

    engine     parameters   gradients   masters   moments      buffers
    plain      4P           4P          -         4kP          -
    ZeRO-0     4P           4P          -         4kP          4R
    ZeRO-1     4P           4P          4P/W      4kP/W        4R + 4 min(R, P)/W
    ZeRO-2     4P           4P/W        4P/W      4kP/W        4R + 4 min(R, P)/W
    ZeRO-3     4P/W         4P/W        4P/W      4kP/W        4R + 4 min(R, P) + 4 min(P, L)

R is DeepSpeed's reduce_bucket_size (5e8 elements; a processor takes what is written of it, min(R, P)), L its
stage3_max_live_parameters (1e9). A bucket is laid out anew to be reduced: for one rank after the other
(ZeRO-2, and 1 on a GPU), for all at once (ZeRO-3), and gloo copies that once more. bf16 adds 2P (2 min(P, L)
under ZeRO-3): autocast keeps the rounded copies of the weights until the backward pass.

On a processor a save copies masters and moments, 4(1 + k)P/W, and keeps the copy's memory for the next one;
beside a GPU that copy is in the host's memory and not counted here.

Activations that autograd keeps for one image, T tokens of width D, M hidden features, c bytes a number
(2 in bf16, 4 in float32); the residual stream and the norms' inputs are float32 always:

    block                 T · (8D + c(6D + 2M)) + 4hT     two norms' inputs, q k v, attention's output,
                                                          two matrix products' inputs, GELU's two sides
    last block            only the class token goes through its output projection and MLP
    with checkpointing    4TD for each block, and one block in full while it is recomputed
    dropout               one byte for each element that it acts on

Convolutions: c bytes for each element that a norm reads or a ReLU makes, for the copies that padding
makes, and for what the first pool keeps. The rest of a step: the rank's
part of the batch as bytes, the micro-batch in float32 and in c, logits, and gradients of the largest
block. With bf16_params and fp16 the residual stream takes c bytes, so they keep less than this says.
On a GPU, 2 GiB are added for the CUDA context, kernels and NCCL, and 5 % of all for fragmentation. Compiled
blocks keep less than this says. On a processor a process without any network holds (measured, PyTorch 2.14.1
for CUDA, MiB): 510 PyTorch, 90 our modules and the loader's libraries, 140 the compiler's front end, which
comes with an optimizer, 20 oneDNN's kernels with the first step; 70 more with DeepSpeed and its groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from model.config import BiTConfig, ModelConfig, ViTConfig
from model.resnet import BiTRoot, StandardisedConv
from model.stem import StemRoot
from model.vit import ViT
from model.zoo import build
from pipeline.config import EngineSettings, TrainSettings

_BUCKET, _LIVE = 500_000_000, 1_000_000_000  # DeepSpeed's defaults, elements
_GPU_RESERVE, _PROCESS, _DEEPSPEED = 2 * 2**30, 760 * 2**20, 70 * 2**20
_FRAGMENTATION = 0.05


@dataclass(frozen=True, slots=True)
class Load:
    """What a rank holds at once: the part of the batch, the micro-batch, and how it computes."""

    part: int  # images of the batch on this rank
    micro_batch: int
    world: int
    engine: EngineSettings
    moments: int  # tensors that the optimizer keeps for each parameter
    gpu: bool
    hidden_patch_outputs: int | None = None  # of an image, in masked patch prediction; None: classification


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one rank by what they hold."""

    parameters: int
    gradients: int
    masters: int
    moments: int
    buffers: int  # DeepSpeed's, and autocast's copies of weights
    activations: int
    batch: int  # pixels, logits, gradients in flight
    saving: int  # the copy that a checkpoint is written from; 0 on a GPU
    reserve: int

    @property
    def total(self) -> int:
        parts = self.buffers + self.activations + self.batch + self.saving + self.reserve
        return self.states + parts

    @property
    def states(self) -> int:
        """What ZeRO splits over ranks."""
        return self.parameters + self.gradients + self.masters + self.moments


def moments_of(settings: TrainSettings) -> int:
    """Tensors that are kept for each parameter beside its master: moments, and the Polyak average."""
    optimizer = settings.optimizer
    moments = 2 if optimizer.name == "adam" else int(optimizer.momentum > 0)
    return moments + (settings.average is not None)


def memory_of(config: ModelConfig, parameters: int, load: Load) -> Memory:
    """Bytes of one rank; see the head of this file."""
    width = 2 if load.engine.arithmetic == "bf16" else 4
    saved, largest = activation_bytes(
        config,
        width,
        load.micro_batch,
        checkpointing=load.engine.activation_checkpointing,
        all_read=load.hidden_patch_outputs is not None,
    )
    pixels, outputs = 3 * prod(config.image_size), load.hidden_patch_outputs or config.num_classes
    batch = load.part * pixels + load.micro_batch * (pixels * (4 + width) + 12 * outputs)
    states = _states(parameters, load)
    buffers = _buffers(parameters, load)
    used = sum(states) + buffers + saved + batch + largest
    if load.gpu:
        return Memory(
            *states, buffers, saved, batch + largest, 0, _GPU_RESERVE + round(_FRAGMENTATION * used)
        )
    saving = -(-4 * parameters // load.world) * (1 + load.moments)
    reserve = _PROCESS + (_DEEPSPEED if load.engine.kind == "zero" else 0)
    return Memory(*states, buffers, saved, batch + largest, saving, reserve)


def _states(parameters: int, load: Load) -> tuple[int, int, int, int]:
    whole, split = 4 * parameters, -(-4 * parameters // load.world)
    if load.engine.kind == "plain":
        return whole, whole, 0, load.moments * whole
    stage = load.engine.stage
    working = split if stage == 3 else whole
    return (
        working // 2 if load.engine.rounds_parameters else working,
        whole if stage < 2 else split,
        split if stage else 0,
        load.moments * (split if stage else whole),
    )


def _buffers(parameters: int, load: Load) -> int:
    rounded = 2 if load.engine.precision == "bf16" else 0
    if load.engine.kind == "plain":
        return rounded * parameters
    zero: Mapping[str, Any] = load.engine.deepspeed.get("zero_optimization") or {}
    # torch.empty: a processor gives out pages only when they are written.
    reserved = int(zero.get("reduce_bucket_size", _BUCKET))
    filled = 4 * min(reserved, parameters)
    bucket = 4 * reserved if load.gpu else filled
    if load.engine.stage < 3:
        by_rank = load.engine.stage == 2 or (load.engine.stage == 1 and load.gpu)
        return bucket + rounded * parameters + (filled // load.world if by_rank else 0)
    live = min(parameters, int(zero.get("stage3_max_live_parameters", _LIVE)))
    laid_out = filled if load.gpu else 2 * filled
    return bucket + laid_out + (2 if load.engine.rounds_parameters else 4 + rounded) * live


# ---------------------------------------------------------------- activations


def activation_bytes(
    config: ModelConfig, width: int, images: int, *, checkpointing: bool = False, all_read: bool = False
) -> tuple[int, int]:
    """Bytes that autograd keeps until the backward pass, and gradients of the largest block meanwhile.

    Args:
        config: the network.
        width: bytes of a number in matrix products, 2 or 4.
        images: of one micro-batch.
        checkpointing: each block keeps its input alone.
        all_read: the last block gives all tokens, as masked patch prediction needs them.
    """
    convolutions = (
        _convolution_bytes(config, width, checkpointing=checkpointing) if _has_convolutions(config) else 0
    )
    if isinstance(config, BiTConfig):
        # The first stage has the largest maps: about a sixth of all is in its largest unit.
        return images * convolutions, images * (convolutions if checkpointing else convolutions // 6)
    tokens, block = config.num_tokens, _block_bytes(config, width)
    blocks = (config.depth - 1) * block + _block_bytes(config, width, last=not all_read)
    if checkpointing:
        blocks = config.depth * 4 * tokens * config.width + block
    dropout = tokens * config.width if config.dropout else 0
    ends = tokens * (width + 4) * config.width + dropout
    in_flight = tokens * width * (2 * config.mlp + 4 * config.width)
    return images * (blocks + convolutions + ends), images * in_flight


def _block_bytes(config: ViTConfig, width: int, *, last: bool = False) -> int:
    """What one block keeps for one image; `last` lets the class token alone through its second half."""
    tokens, features = config.num_tokens, config.width
    second = 1 if last and config.has_class_token else tokens
    # Attention reads all tokens: norm's input, q k v's input, q k v.
    first_half = tokens * features * (4 + 4 * width)
    scale = config.heads * tokens * 4
    rest = second * (4 * features + width * (2 * features + 2 * config.mlp))
    masks = second * (2 * features + config.mlp) if config.dropout else 0
    relative = config.heads * tokens * tokens * 3 * width if config.positions == "relative" else 0
    return first_half + scale + rest + masks + relative


def _has_convolutions(config: ModelConfig) -> bool:
    return isinstance(config, BiTConfig) or config.stem is not None


def _convolution_bytes(config: ModelConfig, width: int, *, checkpointing: bool) -> int:
    """What the convolutional part of a network keeps for one image.

    Norms keep their input and the ReLU behind them its output, which the next convolution reads; SAME
    padding makes a copy of that. The network is run without memory (PyTorch's meta device), so every
    layout of the zoo is counted.
    """
    counted = 0
    inside: set[nn.Module] = set()

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal counted
        if module in units:
            counted += inputs[0].numel() * width if checkpointing else 0
        elif checkpointing and module in inside:
            return
        elif isinstance(module, nn.GroupNorm):
            counted += (inputs[0].numel() + output.numel()) * width
        elif isinstance(module, StandardisedConv) and module.same and module.kernel_size[0] > 1:
            counted += inputs[0].numel() * width
        elif isinstance(module, StemRoot | BiTRoot):
            # The pool keeps a padded copy of its input and where each largest value stood.
            counted += output.numel() * (4 * width + 8)

    with torch.device("meta"), torch.no_grad():
        network = build(config)
        units = set(network.stem.blocks if isinstance(network, ViT) and network.stem else network.blocks)
        inside.update(part for unit in units for part in unit.modules())
        for module in network.modules():
            module.register_forward_hook(count)
        network(torch.empty(1, 3, *config.image_size))
    return counted

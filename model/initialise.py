"""Initial weights: which parameter plays which role, and what each source does with that role.

In goes a model, out comes the same model with every parameter overwritten. Each parameter is filled with NaN
first and checked afterwards, so one that no rule reaches is an error, never leftover memory.

Sources: vit_jax and big_vision (flax initialisers, variance of truncated normals corrected), timm (modes
"jax" and default), torchvision and Hugging Face; paper-side facts in arXiv 2010.11929 and the code bases' own
files. The PyTorch sources draw query, key and value as one fused matrix, which makes Xavier's bound smaller
by the square root of two.
"""

import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig, ViTConfig

Init = Callable[[Tensor, torch.Generator | None], object]

TRUNCATED_STD = (
    0.87962566103423978  # deviation of a unit normal cut at two deviations (flax variance_scaling)
)

# First match wins; searched in the parameter's full name.
ROLES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(prediction_)?head\.weight$", "head_kernel"),
    (r"(^|\.)head\.bias$", "head_bias"),
    (r"pre_logits\.weight$", "pre_logits_kernel"),
    (r"class_token$", "class_token"),
    (r"mask_token$", "class_token"),
    (r"pool\.probe$", "probe"),
    (r"(positions|offsets)\.\w+$", "positions"),
    (r"embedding\.patch\.weight$", "patch_kernel"),
    (r"embedding\.patch\.bias$", "patch_bias"),
    (r"\.(qkv|key_value)\.weight$", "qkv_kernel"),
    (r"\.query\.weight$", "qkv_kernel"),
    (r"attention\.out\.weight$", "out_kernel"),
    (r"mlp\.(up|down)\.weight$", "mlp_kernel"),
    (r"mlp\.(up|down)\.bias$", "mlp_bias"),
    (r"stem\..*norm3\.weight$", "zero"),  # the residual branch starts silent (vit_jax models_resnet.py)
    (r"norm\w*\.weight$", "one"),
    (r"conv\w*\.weight$", "conv_kernel"),
    (r"\.bias$", "zero"),
)


def init_parameters(
    model: nn.Module,
    config: ModelConfig,
    generator: torch.Generator | None,
    gather: Callable[[nn.Parameter], AbstractContextManager[Any]] | None,
) -> None:
    """Overwrite every parameter of `model`; see `ImageModel.init_weights` for `generator` and `gather`."""
    rules = _rules(config)
    device = torch.device("cpu") if generator is None else generator.device
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        with torch.no_grad(), (gather or nullcontext_for)(parameter):
            parameter.fill_(math.nan)
            draft = torch.full(parameter.shape, math.nan, dtype=torch.float32, device=device)
            rules[role_of(name)](draft, generator)
            parameter.copy_(draft)
            assert not parameter.isnan().any(), f"parameter {name} has no initial value"


def nullcontext_for(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """The `gather` of a model whose parameters are whole already."""
    return nullcontext(parameter)


def role_of(name: str) -> str:
    """The role of a parameter, from its name; a name that no rule knows is our own mistake."""
    for pattern, role in ROLES:
        if re.search(pattern, name):
            return role
    raise AssertionError(f"no initial value is defined for parameter {name}")


def _rules(config: ModelConfig) -> Mapping[str, Init]:
    rules = dict(_PAPER)
    if isinstance(config, ViTConfig):
        rules.update(_SCHEMES[config.scheme])
        if config.scheme == "big_vision":
            rules["positions"] = normal(1 / math.sqrt(config.width))
    rules["head_bias"] = constant(config.head_bias)
    return rules


def constant(value: float) -> Init:
    """Every entry the same."""
    return lambda draft, generator: draft.fill_(value)


def normal(std: float) -> Init:
    """Normal with mean 0."""
    return lambda draft, generator: draft.normal_(0.0, std, generator=generator)


def truncated(std: float) -> Init:
    """Normal with deviation `std` before it is cut at two deviations."""
    return lambda draft, generator: nn.init.trunc_normal_(
        draft, 0.0, std, -2 * std, 2 * std, generator=generator
    )


def truncated_timm(std: float) -> Init:
    """Normal cut at -2 and 2, which for these deviations is no cut at all (timm, Hugging Face)."""
    return lambda draft, generator: nn.init.trunc_normal_(draft, 0.0, std, -2.0, 2.0, generator=generator)


def lecun_normal(corrected: bool) -> Init:
    """Deviation sqrt(1 / fan_in), cut at two deviations; `corrected` allows for the cut (flax)."""

    def fill(draft: Tensor, generator: torch.Generator | None) -> None:
        std = math.sqrt(1 / _fan_in(draft)) / (TRUNCATED_STD if corrected else 1.0)
        truncated(std)(draft, generator)

    return fill


def xavier_uniform(draft: Tensor, generator: torch.Generator | None) -> None:
    """Uniform with bound sqrt(6 / (fan_in + fan_out)), of a fused matrix as of any other."""
    bound = math.sqrt(6 / (_fan_in(draft) + draft.shape[0]))
    draft.uniform_(-bound, bound, generator=generator)


def qkv_xavier(draft: Tensor, generator: torch.Generator | None) -> None:
    """Xavier on each square matrix of query, key and value: bound sqrt(3 / D)."""
    bound = math.sqrt(3 / draft.shape[1])
    draft.uniform_(-bound, bound, generator=generator)


def fan_in_uniform(draft: Tensor, generator: torch.Generator | None) -> None:
    """PyTorch's own default for linear and convolutional kernels: uniform with bound sqrt(1 / fan_in)."""
    bound = math.sqrt(1 / _fan_in(draft))
    draft.uniform_(-bound, bound, generator=generator)


def probe_xavier(draft: Tensor, generator: torch.Generator | None) -> None:
    """Xavier on the (1, 1, D) probe as flax counts it: fan-in 1, fan-out D."""
    bound = math.sqrt(6 / (1 + draft.shape[-1]))
    draft.uniform_(-bound, bound, generator=generator)


def _fan_in(kernel: Tensor) -> int:
    return math.prod(kernel.shape[1:])


_PAPER: Mapping[str, Init] = {
    "zero": constant(0.0),
    "one": constant(1.0),
    "conv_kernel": lecun_normal(corrected=True),
    "patch_kernel": lecun_normal(corrected=True),
    "patch_bias": constant(0.0),
    "qkv_kernel": qkv_xavier,
    "out_kernel": xavier_uniform,
    "mlp_kernel": xavier_uniform,
    "mlp_bias": normal(1e-6),
    "positions": normal(0.02),
    "class_token": constant(0.0),
    "probe": probe_xavier,
    "pre_logits_kernel": lecun_normal(corrected=True),
    "head_kernel": constant(0.0),
}
_SMALL = truncated_timm(0.02)
_SCHEMES: Mapping[str, Mapping[str, Init]] = {
    "paper": {},
    "big_vision": {},  # as the paper but for the positions, whose deviation needs the width
    "timm_jax": {"qkv_kernel": xavier_uniform, "positions": _SMALL, "class_token": normal(1e-6)},
    "timm": {
        "patch_kernel": fan_in_uniform,
        "patch_bias": constant(0.0),
        "qkv_kernel": _SMALL,
        "out_kernel": _SMALL,
        "mlp_kernel": _SMALL,
        "mlp_bias": constant(0.0),
        "positions": _SMALL,
        "class_token": normal(1e-6),
        "head_kernel": _SMALL,
    },
    "torchvision": {
        "patch_kernel": lecun_normal(corrected=False),
        "qkv_kernel": xavier_uniform,
        "out_kernel": fan_in_uniform,
        "pre_logits_kernel": lecun_normal(corrected=False),
    },
    "huggingface": dict.fromkeys(
        (
            "patch_kernel",
            "qkv_kernel",
            "out_kernel",
            "mlp_kernel",
            "positions",
            "class_token",
            "pre_logits_kernel",
        ),
        _SMALL,
    )
    | {"mlp_bias": constant(0.0), "head_kernel": _SMALL},
}

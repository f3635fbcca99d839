"""Our models against timm, torchvision and transformers: same weights, same outputs and gradients.

Each case builds the other library's model with random weights (zeros and ones too, so that no parameter can
hide), carries them over through the weight layout, and compares float32 outputs and the gradient of every
parameter. Sizes are tiny in the ordinary run, as published under `slow`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from model.config import BiTConfig, ModelConfig
from model.weights.exchange import LAYOUTS, Imported, export_weights, import_weights, read_foreign
from model.weights.files import load_into
from model.weights.layout import convert_in, convert_out
from model.zoo import build

TOLERANCE = 1e-4  # of the largest value of what is compared
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
SMALL_TV = {
    "image_size": 32,
    "patch_size": 8,
    "num_layers": 2,
    "num_heads": 3,
    "hidden_dim": 48,
    "mlp_dim": 96,
}


@dataclass(frozen=True)
class Case:
    """A foreign model, its layout, images, and what import_weights has to be told."""

    layout: str
    make: Callable[[], nn.Module]
    size: tuple[int, int]
    told: Mapping[str, object]


def timm_vit(**changes: object) -> Callable[[], nn.Module]:
    return lambda: timm.models.vision_transformer.VisionTransformer(**{**SMALL, **changes})


def timm_bit() -> nn.Module:
    conv = partial(timm.layers.StdConv2d, eps=1e-8)
    return timm.models.resnetv2.ResNetV2([1, 2], num_classes=7, stem_type="fixed", conv_layer=conv)


def timm_model(name: str, **changes: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, **changes)


def torchvision_vit(**changes: object) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.VisionTransformer(**{**SMALL_TV, "num_classes": 7, **changes})


def hf_vit(**changes: object) -> Callable[[], nn.Module]:
    small = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "image_size": 32,
        "patch_size": 8,
        "num_labels": 7,
    }
    return lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**{**small, **changes}))


HEADS = {"heads": 3}
CASES = {
    "timm": Case("timm", timm_vit(), (32, 32), HEADS),
    "timm-map": Case("timm", timm_vit(class_token=False, global_pool="map", mlp_ratio=2), (32, 32), HEADS),
    "timm-gap": Case(
        "timm", timm_vit(class_token=False, global_pool="avg", fc_norm=False, qk_norm=True), (32, 32), HEADS
    ),
    "timm-wide": Case("timm", timm_vit(img_size=(24, 40)), (24, 40), {"heads": 3, "image_size": (24, 40)}),
    "timm-root": Case("timm", timm_model("vit_tiny_r_s16_p8_224", img_size=64, num_classes=7), (64, 64), {}),
    "timm-bit": Case("timm", timm_bit, (64, 64), {}),
    "torchvision": Case("torchvision", torchvision_vit(), (32, 32), HEADS),
    "torchvision-mlp": Case("torchvision", torchvision_vit(representation_size=48), (32, 32), HEADS),
    "huggingface": Case("huggingface", hf_vit(), (32, 32), HEADS),
}
LARGE = {
    "timm-ti": Case("timm", timm_model("vit_tiny_patch16_224"), (224, 224), {}),
    "timm-s": Case("timm", timm_model("vit_small_patch32_224"), (224, 224), {}),
    "timm-b": Case("timm", timm_model("vit_base_patch16_224"), (224, 224), {}),
    "timm-l": Case("timm", timm_model("vit_large_patch32_224", num_classes=9), (224, 224), {}),
    "timm-so400m": Case(
        "timm", timm_model("vit_so400m_patch14_siglip_224", depth=2, num_classes=9), (224, 224), {"heads": 16}
    ),
    "timm-r26-s": Case("timm", timm_model("vit_small_r26_s32_224"), (224, 224), {}),
    "timm-r50-l": Case("timm", timm_model("vit_large_r50_s32_224"), (224, 224), {}),
    "timm-r50-b": Case("timm", timm_model("vit_base_r50_s16_224", num_classes=9), (224, 224), {}),
    "timm-bit-50x1": Case("timm", timm_model("resnetv2_50x1_bit"), (224, 224), {}),
    "torchvision-b16": Case("torchvision", lambda: torchvision.models.vit_b_16(), (224, 224), {}),
    "torchvision-l32": Case("torchvision", lambda: torchvision.models.vit_l_32(), (224, 224), {}),
    "huggingface-b16": Case(
        "huggingface",
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)),
        (224, 224),
        {},
    ),
}


def shaken(model: nn.Module) -> nn.Module:
    """Random numbers added to every parameter, so that none can be swapped unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            scale = 0.02 if parameter.ndim > 1 else 0.1
            parameter.add_(scale * noise)
    return model.eval()


def carried(case: Case, foreign: nn.Module, folder: Path) -> Imported:
    path = folder / "theirs.safetensors"
    save_file({key: value.contiguous().clone() for key, value in foreign.state_dict().items()}, path)
    return import_weights(path, layout=case.layout, **case.told)  # type: ignore[arg-type]


def outputs(model: nn.Module, images: Tensor) -> Tensor:
    result = model(images)
    return result if isinstance(result, Tensor) else result.logits


def run(model: nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and the gradients of a loss that no single output dominates."""
    model.zero_grad()
    logits = outputs(model, images)
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }


def assert_same_as_theirs(case: Case, folder: Path) -> None:
    foreign = shaken(case.make())
    found = carried(case, foreign, folder)
    ours: nn.Module = build(found.config).eval()
    load_into(ours, found.state)
    images = torch.rand(2, 3, *case.size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    theirs_out, theirs_grad = run(foreign, images)
    ours_out, ours_grad = run(ours, images)
    assert_close("outputs", ours_out, theirs_out)
    if uses_relu(found.config):
        # A ReLU's slope jumps at 0, and in float32 the two libraries may round an input to either side: so
        # the gradients are compared in float64, where none does, and much more tightly.
        theirs_out, theirs_grad = run(foreign.double(), images.double())
        ours_out, ours_grad = run(ours.double(), images.double())
        assert_same_gradients(case, found.config, ours_grad, theirs_grad, 1e-6)
    else:
        assert_same_gradients(case, found.config, ours_grad, theirs_grad, TOLERANCE)


def uses_relu(config: ModelConfig) -> bool:
    return isinstance(config, BiTConfig) or config.stem is not None


def assert_same_gradients(
    case: Case, config: ModelConfig, ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float
) -> None:
    layout = LAYOUTS[case.layout]
    expected = convert_in(layout.entries(config), layout.normalise(theirs))
    assert expected.keys() == ours.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        # A key's bias shifts all its logits alike, so its true gradient is 0 and only rounding is left: hence
        # the floor.
        scale = max(float(value.abs().max()), 1e-3 * largest)
        assert float((ours[name] - value).abs().max()) < tolerance * scale, name


def assert_close(name: str, ours: Tensor, theirs: Tensor) -> None:
    scale = float(theirs.abs().max())
    assert float((ours - theirs).abs().max()) < TOLERANCE * scale, name


@pytest.mark.parametrize("name", CASES)
def test_small_model_equals_theirs(name: str, tmp_path: Path) -> None:
    assert_same_as_theirs(CASES[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_published_model_equals_theirs(name: str, tmp_path: Path) -> None:
    assert_same_as_theirs(LARGE[name], tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_theirs_reads_what_we_write(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    foreign = shaken(case.make())
    found = carried(case, foreign, tmp_path)
    path = tmp_path / "ours.safetensors"
    export_weights(path, case.layout, found.state, found.config)
    written, original = read_foreign(path), foreign.state_dict()
    assert written.keys() == original.keys()
    for key, value in original.items():
        assert torch.equal(written[key], value), key
    case.make().load_state_dict(written)


@pytest.mark.parametrize("name", CASES)
def test_our_fresh_weights_run_the_same_in_theirs(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    foreign = case.make()
    config = carried(case, foreign, tmp_path).config
    ours = build(config, torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours.head.weight.normal_(generator=torch.Generator().manual_seed(6))
    foreign.load_state_dict(convert_out(LAYOUTS[case.layout].entries(config), ours.state_dict()))
    images = torch.rand(2, 3, *case.size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        assert_close("outputs", ours.eval()(images), outputs(foreign.eval(), images))

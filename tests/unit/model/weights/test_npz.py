"""The authors' npz files, read back by us and by timm, in every form they were published in."""

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from model.config import BiTConfig, ModelConfig
from model.interface import ImageModel
from model.weights import npz
from model.weights.exchange import export_weights, import_weights, read_foreign
from model.weights.layout import convert_out
from model.zoo import build, model_config

SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
TIMM_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 2}
MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "vit": ("vit_ti8", SMALL),
    "hidden": ("vit_ti8", {**SMALL, "representation": True}),
    "gap": ("vit_ti8", {**SMALL, "pool": "gap"}),
    "map": ("vit_ti8", {**SMALL, "pool": "map"}),
    "sincos": ("vit_ti8", {**SMALL, "positions": "sincos2d"}),
    "root": ("r_vit_ti16", {"depth": 1, "image_size": 64}),
    "hybrid": ("r26_vit_s32", {**SMALL, "image_size": 64, "stem": (1, 2), "patch": 2}),
    "bit": ("bit_r11x1", {}),
}


def config_of(which: str, **changes: object) -> ModelConfig:
    name, options = MODELS[which]
    if which == "bit":
        return BiTConfig(name=name, num_classes=5, image_size=(32, 32), blocks=(1, 2), **changes)  # type: ignore[arg-type]
    return model_config(name, **{"num_classes": 5, "image_size": 32, **options, **changes})  # type: ignore[arg-type]


def random_model(config: ModelConfig) -> ImageModel:
    model = build(config, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def options_of(config: ModelConfig) -> dict[str, object]:
    return {"positions": "sincos2d"} if getattr(config, "positions", "") == "sincos2d" else {}


@pytest.mark.parametrize("which", MODELS)
def test_round_trips_are_bit_identical(which: str, tmp_path: Path) -> None:
    config = config_of(which)
    state = random_model(config).state_dict()
    export_weights(tmp_path / "w.npz", "npz", state, config)
    size = None if which in ("vit", "hidden", "gap", "map") else config.image_size
    found = import_weights(tmp_path / "w.npz", image_size=size, **options_of(config))
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in state.items())
    assert {**found.config.to_dict(), "name": ""} == {**config.to_dict(), "name": ""}
    assert found.notes == []


def test_the_files_names_and_shapes_are_the_published_ones(tmp_path: Path) -> None:
    config = model_config("vit_b16", num_classes=7, depth=1, representation=True)
    export_weights(tmp_path / "w.npz", "npz", build(config).state_dict(), config)
    shapes = {key: tuple(value.shape) for key, value in read_foreign(tmp_path / "w.npz").items()}
    block = "Transformer/encoderblock_0"
    expected = {
        "cls": (1, 1, 768),
        "embedding/kernel": (16, 16, 3, 768),
        "Transformer/posembed_input/pos_embedding": (1, 197, 768),
        f"{block}/LayerNorm_0/scale": (768,),
        f"{block}/MultiHeadDotProductAttention_1/query/kernel": (768, 12, 64),
        f"{block}/MultiHeadDotProductAttention_1/key/bias": (12, 64),
        f"{block}/MultiHeadDotProductAttention_1/out/kernel": (12, 64, 768),
        f"{block}/LayerNorm_2/bias": (768,),
        f"{block}/MlpBlock_3/Dense_0/kernel": (768, 3072),
        f"{block}/MlpBlock_3/Dense_1/bias": (768,),
        "Transformer/encoder_norm/scale": (768,),
        "pre_logits/kernel": (768, 768),
        "head/kernel": (768, 7),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 4 + 16 + 2 + 4


def timm_bit() -> torch.nn.Module:
    conv = partial(timm.layers.StdConv2d, eps=1e-8)
    return timm.models.resnetv2.ResNetV2([1, 2], num_classes=5, stem_type="fixed", conv_layer=conv)


def test_timm_reads_what_we_write(tmp_path: Path) -> None:
    """timm's own reader of these files is the independent witness for every transposition."""
    cases = (
        (
            "vit",
            timm.models.vision_transformer.VisionTransformer(**TIMM_SMALL, num_classes=5),
            {"gelu": "erf"},
        ),
        ("bit", timm_bit(), {"conv_eps": 1e-8}),
    )
    for which, theirs, conventions in cases:
        config = config_of(which, **conventions)
        ours = random_model(config)
        path = tmp_path / f"{which}.npz"
        export_weights(path, "npz", ours.state_dict(), config)
        theirs.load_pretrained(str(path))
        images = torch.rand(2, 3, *config.image_size, generator=torch.Generator().manual_seed(2)) * 2 - 1
        with torch.no_grad():
            torch.testing.assert_close(theirs.eval()(images), ours(images), rtol=1e-3, atol=1e-4)


def canonical(which: str) -> tuple[ModelConfig, ImageModel, dict[str, Tensor]]:
    config = config_of(which)
    model = random_model(config)
    arrays = convert_out(npz.entries(config), model.state_dict())
    if "cls" in arrays:
        arrays[npz.ORIGINAL_POSITIONS] = arrays.pop(npz.POSITIONS)
    return config, model, arrays


def write(path: Path, arrays: dict[str, Tensor]) -> Path:
    np.savez(path, **{key: value.numpy() for key, value in arrays.items()})
    return path


def assert_equal(found: dict[str, Tensor], model: ImageModel) -> None:
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("prefix", ["", "params/", "params/img/", "opt/target/"])
def test_newer_names_and_prefixes(prefix: str, tmp_path: Path) -> None:
    _, model, arrays = canonical("gap")
    path = write(tmp_path / "w.npz", {prefix + key: value for key, value in arrays.items()})
    assert_equal(import_weights(path).state, model)


def test_big_vision_keeps_positions_apart_from_the_class_token(tmp_path: Path) -> None:
    config, model, arrays = canonical("vit")
    arrays["pos_embedding"] = arrays.pop(npz.ORIGINAL_POSITIONS)[:, 1:]
    found = import_weights(write(tmp_path / "w.npz", arrays))
    assert found.config.to_dict() | {"name": ""} == config.to_dict() | {"name": ""}
    assert not found.state["positions.table"][0, 0].any()
    with torch.no_grad():
        model.get_parameter("positions.table")[0, 0] = 0
    assert_equal(found.state, model)


def test_blocks_merged_into_one_are_taken_apart(tmp_path: Path) -> None:
    _, model, arrays = canonical("vit")
    merged = {key: value for key, value in arrays.items() if "encoderblock_" not in key}
    for key in arrays:
        if "encoderblock_0/" in key:
            pair = [arrays[key.replace("encoderblock_0", f"encoderblock_{layer}")] for layer in range(2)]
            merged["params/" + key.replace("encoderblock_0", "encoderblock")] = torch.stack(pair)
    assert_equal(import_weights(write(tmp_path / "w.npz", merged)).state, model)


def test_old_group_norms_lose_their_empty_axes(tmp_path: Path) -> None:
    config, model, arrays = canonical("hybrid")
    for key in arrays:
        if "/gn" in key or key.startswith("gn_root"):
            arrays[key] = arrays[key].view(1, 1, 1, -1)
    path = write(tmp_path / "w.npz", arrays)
    assert_equal(import_weights(path, image_size=config.image_size).state, model)


def test_low_precision_arrays_are_widened(tmp_path: Path) -> None:
    _, model, arrays = canonical("vit")
    raw = {key: value.bfloat16().view(torch.int16).numpy().view("V2") for key, value in arrays.items()}
    np.savez(tmp_path / "w.npz", **raw)
    found = import_weights(tmp_path / "w.npz").state
    assert all(torch.equal(value, model.state_dict()[key].bfloat16().float()) for key, value in found.items())


def test_a_missing_head_becomes_zeros_and_a_zero_head_is_said_aloud(tmp_path: Path) -> None:
    _, _, arrays = canonical("vit")
    without = {key: value for key, value in arrays.items() if not key.startswith("head/")}
    found = import_weights(write(tmp_path / "w.npz", without), num_classes=9)
    assert found.state["head.weight"].shape == (9, 48)
    assert "the file has no head" in found.notes[0]
    zeroed = without | {"head/kernel": torch.zeros(48, 21), "head/bias": torch.zeros(21)}
    found = import_weights(write(tmp_path / "w.npz", zeroed))
    assert found.config.num_classes == 21
    assert "all zero" in found.notes[0]


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"embedding/kernel": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ValueError, match=r"embedding/kernel of .* holds Python objects"):
        import_weights(tmp_path / "w.npz")


def test_every_misfit_is_named_in_their_words(tmp_path: Path) -> None:
    _, _, arrays = canonical("vit")
    del arrays["Transformer/encoder_norm/bias"]
    arrays["cls"] = torch.zeros(1, 2, 48)
    arrays["optimizer/step"] = torch.zeros(1)
    with pytest.raises(ValueError, match="the weights do not fit the model") as caught:
        import_weights(write(tmp_path / "w.npz", arrays))
    for part in (
        "1 missing: Transformer/encoder_norm/bias",
        "1 unexpected: optimizer/step",
        "1 of the wrong shape: cls is (1, 2, 48), expected (1, 1, 48)",
    ):
        assert part in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "theirs", "size"),
    [("r50_vit_b16", "vit_base_r50_s16_224", 224), ("r26_vit_s32", "vit_small_r26_s32_224", 224)],
)
def test_timm_reads_our_hybrids(name: str, theirs: str, size: int, tmp_path: Path) -> None:
    config = model_config(
        name,
        num_classes=5,
        image_size=size,
        gelu="erf",
        stem_norm_eps=1e-5,
        stem_conv_eps=1e-8,
        stem_conv_eps_in="variance",
    )
    ours = random_model(config)
    export_weights(tmp_path / "w.npz", "npz", ours.state_dict(), config)
    model = timm.create_model(theirs, num_classes=5).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_pretrained(str(tmp_path / "w.npz"))
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(model(images), ours(images), rtol=1e-3, atol=1e-4)

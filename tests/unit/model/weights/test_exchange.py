"""Files of other libraries: recognised, measured, refused with a reason."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import ModelConfig
from model.weights import files as files_module
from model.weights.exchange import LAYOUTS, export_weights, import_weights, read_foreign
from model.weights.huggingface import config_json
from model.zoo import build, model_config

SMALL = {"width": 48, "depth": 2, "heads": 3, "mlp": 96}
PTH_LAYOUTS = [layout for layout in LAYOUTS if layout != "npz"]


def small(**options: object) -> ModelConfig:
    return model_config("vit_ti8", **{"num_classes": 5, "image_size": 32, **SMALL, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", PTH_LAYOUTS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trips_are_bit_identical_and_recognised(layout: str, suffix: str, tmp_path: Path) -> None:
    config, path = small(), tmp_path / f"w{suffix}"
    state = build(config).state_dict()
    export_weights(path, layout, state, config)
    found = import_weights(path, heads=3)
    assert found.layout == layout
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("layout", "gelu", "eps"), [("npz", "tanh", 1e-6), ("timm", "erf", 1e-6), ("torchvision", "erf", 1e-6)]
)
def test_each_layout_brings_its_conventions(layout: str, gelu: str, eps: float, tmp_path: Path) -> None:
    path = tmp_path / ("w.npz" if layout == "npz" else "w.safetensors")
    config = model_config("vit_ti16", num_classes=5, image_size=32, depth=12)
    export_weights(path, layout, build(config).state_dict(), config)
    found = import_weights(path).config.to_dict()
    assert (found["name"], found["heads"], found["gelu"], found["norm_eps"]) == ("vit_ti16", 3, gelu, eps)
    assert import_weights(path, gelu="tanh").config.to_dict()["gelu"] == "tanh"


def test_rectangles_need_to_be_told(tmp_path: Path) -> None:
    config, path = small(image_size=(16, 40)), tmp_path / "w.safetensors"
    export_weights(path, "timm", build(config).state_dict(), config)
    with pytest.raises(ValueError, match=r"has 10 rows for patches, which is no square; give image_size"):
        import_weights(path, heads=3)
    assert import_weights(path, heads=3, image_size=(16, 40)).config.to_dict()["image_size"] == [16, 40]


def test_unknown_sizes_need_their_heads(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_weights(path, "timm", build(small()).state_dict(), small())
    with pytest.raises(
        ValueError, match=r"of width 48, depth 2 and MLP 96, which is no published size.*give heads"
    ):
        import_weights(path)


def test_a_name_overrules_the_shapes_and_then_misfits_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    export_weights(path, "timm", build(small()).state_dict(), small())
    with pytest.raises(
        ValueError, match=r"120 missing: blocks.2.norm1.weight.*patch_embed.proj.weight is \(48, 3"
    ):
        import_weights(path, name="vit_ti8", image_size=32)
    with pytest.raises(ValueError, match=r"'bit_r50x1' is a ResNet"):
        import_weights(path, name="bit_r50x1")
    with pytest.raises(ValueError, match=r"unknown option of model .* 'geluu'; did you mean 'gelu'"):
        import_weights(path, heads=3, geluu="erf")


def test_checkpoints_that_wrap_their_tensors_are_opened_without_pickle(tmp_path: Path) -> None:
    config = small()
    export_weights(tmp_path / "bare.pth", "timm", build(config).state_dict(), config)
    bare = read_foreign(tmp_path / "bare.pth")
    for wrapper in ("model", "state_dict"):
        torch.save({wrapper: bare, "epoch": 3}, tmp_path / "wrapped.pth")
        assert read_foreign(tmp_path / "wrapped.pth").keys() == bare.keys()
    torch.save({"model": small()}, tmp_path / "object.pth")
    with pytest.raises(ValueError, match=r"holds more than tensors.*save its state_dict"):
        read_foreign(tmp_path / "object.pth")


def test_what_a_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[str, ModelConfig, str]] = [
        ("timm", small(representation=True), "has a hidden layer before the head, for which the timm layout"),
        ("timm", small(positions="relative"), "has positions 'relative', positions at 'layers'"),
        ("huggingface", small(representation=True), "ViTForImageClassification would leave out"),
        ("huggingface", small(pool="gap", qk_norm=True), "has normalised queries and keys, pool 'gap'"),
        ("torchvision", small(positions="sincos2d"), "positions 'sincos2d'"),
        ("torchvision", model_config("bit_r26x1", num_classes=2), "has no BiT ResNets"),
        ("npz", small(qk_norm=True), "has normalised queries and keys"),
    ]
    for layout, config, message in cases:
        with pytest.raises(ValueError, match=message):
            export_weights(tmp_path / ("w.npz" if layout == "npz" else "w.safetensors"), layout, {}, config)
    with pytest.raises(ValueError, match=r"unknown layout 'tim'; did you mean 'timm'"):
        export_weights(tmp_path / "w.safetensors", "tim", {}, small())
    with pytest.raises(ValueError, match=r"w.pth does not end in .npz"):
        export_weights(tmp_path / "w.pth", "npz", {}, small())
    assert not list(tmp_path.iterdir())


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    state = build(small()).state_dict()
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"1 missing: norm.bias"):
        export_weights(tmp_path / "w.npz", "npz", state, small())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layout", "suffix"), [("npz", ".npz"), ("timm", ".pth"), ("timm", ".safetensors")])
def test_an_export_that_fails_half_way_leaves_the_old_file(
    layout: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, path = small(), tmp_path / f"w{suffix}"
    export_weights(path, layout, build(config).state_dict(), config)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_weights(path, layout, build(config).state_dict(), config)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_files_of_nobody_are_refused(tmp_path: Path) -> None:
    torch.save({"a.weight": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"none of the layouts npz, timm.*its first tensors are a.weight"):
        import_weights(tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w.h5 ends in '.h5', expected .npz"):
        import_weights(tmp_path / "w.h5")
    for name in ("w.npz", "v.pth", "w.safetensors"):
        with pytest.raises(FileNotFoundError, match=r"no weight file"):
            import_weights(tmp_path / name)


def test_what_is_no_array_of_numbers_in_an_npz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, cls=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"cls of .*w.npz holds Python objects, and other people's pickles"):
        read_foreign(path)
    np.savez(path, cls=np.array(["text"]))
    with pytest.raises(ValueError, match=r"cls of .*w.npz holds <U4, expected an array of numbers"):
        read_foreign(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ValueError, match=r"notes.txt of .*w.npz holds bytes, expected an array of numbers"):
        read_foreign(path)


def test_old_torchvision_names_are_understood(tmp_path: Path) -> None:
    config = small()
    state = build(config).state_dict()
    export_weights(tmp_path / "w.pth", "torchvision", state, config)
    renamed = {
        key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): value
        for key, value in read_foreign(tmp_path / "w.pth").items()
    }
    torch.save(renamed, tmp_path / "old.pth")
    found = import_weights(tmp_path / "old.pth", heads=3)
    assert all(torch.equal(found.state[key], value) for key, value in state.items())


def test_a_bare_hugging_face_model_brings_its_pooler_as_hidden_layer(tmp_path: Path) -> None:
    config = small()
    state = build(config).state_dict()
    export_weights(tmp_path / "w.pth", "huggingface", state, config)
    bare = {
        key.removeprefix("vit."): value
        for key, value in read_foreign(tmp_path / "w.pth").items()
        if key.startswith("vit.")
    }
    bare |= {"pooler.dense.weight": torch.eye(48), "pooler.dense.bias": torch.zeros(48)}
    torch.save(bare, tmp_path / "bare.pth")
    found = import_weights(tmp_path / "bare.pth", heads=3)
    assert found.config.to_dict()["representation"] is True
    assert torch.equal(found.state["pre_logits.weight"], torch.eye(48))
    assert found.state["head.weight"].shape == (1000, 48)
    assert "the file has no head" in found.notes[0]


def test_hugging_face_gets_a_config_that_says_which_gelu() -> None:
    config = small(gelu="tanh")
    written = config_json(config)  # type: ignore[arg-type]
    assert written["hidden_act"] == "gelu_pytorch_tanh"
    assert (written["num_attention_heads"], written["layer_norm_eps"], len(written["id2label"])) == (
        3,
        1e-6,
        5,
    )

"""Weight files: whole or absent, refused when foreign or damaged, and never half loaded."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from model import create_model
from model.config import config_from_dict
from model.interface import ImageModel
from model.weights import files as files_module
from model.weights import load_into, load_weights, save_weights
from model.zoo import build


def tiny(**options: object) -> ImageModel:
    small = {"num_classes": 3, "image_size": 16, "width": 16, "depth": 1, "heads": 2, "mlp": 16}
    return create_model("vit_ti8", **{**small, **options})  # type: ignore[arg-type]


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model = tiny(representation=True)
    state = model.state_dict() | {"head.weight": model.state_dict()["head.weight"].bfloat16()}
    save_weights(tmp_path / "w.safetensors", state, model.config.to_dict(), {"step": "12"})
    loaded, config, extra = load_weights(tmp_path / "w.safetensors")
    assert loaded.keys() == state.keys()
    assert all(
        torch.equal(loaded[key], value) and loaded[key].dtype == value.dtype for key, value in state.items()
    )
    assert config_from_dict(config) == model.config
    assert extra == {"step": "12"}


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_who_may_read_a_file_is_for_the_umask_to_say(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        save_weights(tmp_path / "w.safetensors", {"a": torch.ones(2)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_views_and_shared_memory_are_saved_as_they_look(tmp_path: Path) -> None:
    fused = torch.arange(12.0).view(6, 2)
    state = {"a": fused[:3], "b": fused[3:], "c": fused.t(), "d": fused, "e": fused}
    save_weights(tmp_path / "w.safetensors", state, {})
    loaded, _, _ = load_weights(tmp_path / "w.safetensors")
    assert torch.equal(loaded["b"], fused[3:])
    assert torch.equal(loaded["c"], fused.t())
    assert torch.equal(loaded["e"], fused)


def test_any_reader_of_safetensors_finds_tensors_and_header(tmp_path: Path) -> None:
    model = tiny()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), model.config.to_dict())
    with safe_open(str(tmp_path / "w.safetensors"), framework="np") as handle:
        assert "blocks.0.attention.qkv.weight" in list(handle.keys())
        assert handle.metadata()["vitline.format"] == "1"


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(2)}, {})
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files_module.os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left"):
        save_weights(path, {"a": torch.ones(2)}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.zeros(2)}, {})
    before = path.read_bytes()
    with path.open("rb") as reader:
        save_weights(path, {"a": torch.ones(2)}, {})
        assert reader.read() == before
    assert load_weights(path)[0]["a"].tolist() == [1.0, 1.0]


def test_foreign_newer_damaged_and_absent_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(
        ValueError, match=r"without a vitline header; another library wrote it: .*vitline model import"
    ):
        load_weights(path)
    save_file({"a": torch.zeros(2)}, path, {"vitline.format": "9", "vitline.config": "{}"})
    with pytest.raises(ValueError, match=r"has weight format '9', this version reads '1'"):
        load_weights(path)
    save_weights(path, {"a": torch.zeros(1000)}, {})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"is not a whole safetensors file"):
        load_weights(path)
    with pytest.raises(FileNotFoundError, match=r"no weight file at"):
        load_weights(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match=r"header key 'vitline.step' starts with 'vitline.'"):
        save_weights(path, {}, {}, {"vitline.step": "1"})


def test_a_misfit_names_every_key_and_changes_nothing() -> None:
    model = tiny()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: torch.full_like(value, 7.0) for key, value in before.items()}
    del state["norm.weight"], state["norm.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["head.weight"] = torch.zeros(4, 16)
    state["head.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"the weights do not fit the model") as caught:
        load_into(model, state)
    message = str(caught.value)
    assert "2 missing: norm.weight, norm.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "2 of the wrong shape: head.weight is (4, 16), expected (3, 16), head.bias is (4,)" in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_loading_into_a_model_on_the_meta_device() -> None:
    state = tiny().state_dict()
    with torch.device("meta"):
        model = build(tiny().config)
    load_into(model, state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())

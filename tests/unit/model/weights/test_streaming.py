"""Weights written one tensor at a time are the same file to any reader."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.weights import load_weights
from model.weights.streaming import stream_weights

STATE = {
    "a": torch.arange(6.0).view(2, 3),
    "half": torch.arange(3).bfloat16(),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
    "flags": torch.tensor([True, False]),
    "counts": torch.arange(5),
    "turned": torch.arange(6.0).view(2, 3).t(),
}


def test_any_reader_finds_what_was_streamed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    announced = {name: value.to("meta") if name != "half" else value for name, value in STATE.items()}
    stream_weights(path, announced, STATE.__getitem__, {"width": 3}, {"step": "4"})
    state, config, extra = load_weights(path)
    assert (config, extra) == ({"width": 3}, {"step": "4"})
    for found in (state, load_file(path)):
        assert found.keys() == STATE.keys()
        assert all(torch.equal(found[name], value) for name, value in STATE.items())
        assert all(found[name].dtype == value.dtype for name, value in STATE.items())
    assert list(tmp_path.iterdir()) == [path]


def test_no_tensor_outlives_its_turn(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def load(name: str) -> torch.Tensor:
        assert all(tensor() is None for tensor in alive), f"another tensor is held while {name} is loaded"
        loaded = torch.full((1000,), float(name))
        alive.append(weakref.ref(loaded))
        return loaded

    path = tmp_path / "w.safetensors"
    stream_weights(path, {str(i): torch.empty(1000, device="meta") for i in range(9)}, load, {})
    assert len(alive) == 9
    assert all((value == float(name)).all() for name, value in load_weights(path)[0].items())


def test_a_tensor_that_does_not_come_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    stream_weights(path, {"a": torch.ones(2)}, STATE.__getitem__, {})
    before = path.read_bytes()
    with pytest.raises(KeyError):
        stream_weights(path, {"b": torch.empty(2, device="meta")}, STATE.__getitem__, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]

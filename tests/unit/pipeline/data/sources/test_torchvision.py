from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataView, TorchvisionSource
from pipeline.data.decode import decode
from pipeline.data.sources.catalog import open_source
from pipeline.data.sources.idx import FILES
from pipeline.data.view import open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, UserError


def _write_idx(directory: Path, *, packed: bool) -> dict[str, np.ndarray]:
    directory.mkdir(parents=True, exist_ok=True)
    images = {}
    for number, (split, (image_file, label_file)) in enumerate(FILES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 28, 28), dtype=np.uint8)
        labels = np.arange(len(pixels), dtype=np.uint8) % 10
        for name, array in ((image_file, pixels), (label_file, labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            data = header + array.tobytes()
            (directory / (name + ".gz" * packed)).write_bytes(gzip.compress(data) if packed else data)
        images[split] = pixels
    return images


@pytest.mark.parametrize("where", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_in_root_or_where_torchvision_puts_them(tmp_path: Path, where: str, packed: bool) -> None:
    images = _write_idx(tmp_path / where, packed=packed)
    settings = TorchvisionSource(source="torchvision:FashionMNIST", root=str(tmp_path), download=False)
    source = open_source(settings)
    assert source.classes[9] == "Ankle boot"
    assert [len(split) for split in source.splits.values()] == [20, 21]
    (item,) = source.splits["test"].items(np.array([13]))
    pixels = decode(item.data)
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels[:, :, 1], images["test"][13])
    assert item.label == 3
    prepare(settings, tmp_path / "out")
    assert open_view(DataView(path="out", split="train"), tmp_path).samples == 20


def test_a_damaged_idx_file(tmp_path: Path) -> None:
    _write_idx(tmp_path, packed=False)
    path = tmp_path / FILES["train"][0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not an idx file"):
        open_source(TorchvisionSource(source="torchvision:FashionMNIST", root=str(tmp_path)))


def test_missing_files_and_unknown_names(tmp_path: Path) -> None:
    for name, file in (("FashionMNIST", "FashionMNIST/raw/*-ubyte.gz"), ("CIFAR10", "cifar-10-batches-py")):
        with pytest.raises(
            UserError, match=f"torchvision:{name} could not be opened in {tmp_path}"
        ) as caught:
            open_source(TorchvisionSource(source=f"torchvision:{name}", root=str(tmp_path), download=False))
        assert file in caught.value.expected
        assert str(tmp_path) in caught.value.do
    with pytest.raises(UserError, match="CIFAR11") as caught:
        open_source(TorchvisionSource(source="torchvision:CIFAR11"))
    assert "CIFAR100" in caught.value.expected


def test_image_files_keep_their_bytes(tmp_path: Path) -> None:
    """EuroSAT: a folder a class, no test split; a fifth becomes one."""
    from ..conftest import image_bytes

    files = {}
    for label in ("Forest", "River"):
        for number in range(10):
            path = tmp_path / "eurosat/2750" / label / f"{label}_{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image_bytes(seed=number + 50 * (label == "River")))
            files[path.read_bytes()] = label
    source = open_source(TorchvisionSource(source="torchvision:EuroSAT", root=str(tmp_path), download=False))
    items = {name: list(split.items(np.arange(len(split)))) for name, split in source.splits.items()}
    assert [len(part) for part in items.values()] == [16, 4]
    everything = [item for part in items.values() for item in part]
    assert {item.data: source.classes[item.label] for item in everything} == files


def test_arrays_are_stored_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10's own layout, with ten images a file."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    data = {}
    for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]:
        data[name] = random.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data[name], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{n}" for n in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(
        datasets.CIFAR10, "_load_meta", lambda self: setattr(self, "classes", list("abcdefghij"))
    )
    source = open_source(TorchvisionSource(source="torchvision:CIFAR10", root=str(tmp_path), download=False))
    assert source.classes == tuple("abcdefghij")
    assert [len(split) for split in source.splits.values()] == [50, 10]
    (item,) = source.splits["train"].items(np.array([23]))
    pixels = decode(item.data)
    assert isinstance(pixels, np.ndarray)
    assert np.array_equal(pixels, data["data_batch_3"][3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert item.label == 3

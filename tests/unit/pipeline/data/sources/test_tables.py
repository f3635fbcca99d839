"""Parquet and Hugging Face sources, and samples with several labels."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset

from pipeline.config import (
    AugmentSettings,
    DataView,
    HuggingFaceSource,
    OrderSettings,
    ParquetSource,
    WriteSettings,
)
from pipeline.data.loader import EvalLoader, TrainLoader
from pipeline.data.shards import shuffled
from pipeline.data.sources.catalog import open_source
from pipeline.data.view import View, open_view
from pipeline.data.write import prepare
from pipeline.errors import DataError, UserError

from ..conftest import image_bytes

IMAGES = [image_bytes("JPEG" if n % 2 else "PNG", seed=n) for n in range(30)]


def _write(
    path: Path, labels: list, rows: slice = slice(None), *, nested: bool = True, **metadata: str
) -> None:
    images = IMAGES[rows]
    column = [{"bytes": data, "path": None} for data in images] if nested else images
    table = pa.table({"image": column, "label": labels[rows]})
    table = table.replace_schema_metadata({key: value.encode() for key, value in metadata.items()})
    pq.write_table(table, path, row_group_size=4)


def _settings(tmp_path: Path, **more: object) -> ParquetSource:
    train = f"{tmp_path}/train-{{0..1}}.parquet"
    return ParquetSource(source="parquet", train=train, test=f"{tmp_path}/test*.parquet", **more)


def _files(tmp_path: Path, labels: list, **more: object) -> None:
    _write(tmp_path / "train-0.parquet", labels, slice(0, 14), **more)
    _write(tmp_path / "train-1.parquet", labels, slice(14, 22), **more)
    _write(tmp_path / "test.parquet", labels, slice(22, 30), **more)


def _stored(view: View) -> dict[bytes, int]:
    shard, row = view.store.rows.locate(np.arange(view.samples))
    read = [view.store.read(int(s), int(r)) for s, r in zip(shard, row, strict=True)]
    return dict(zip(read, view.labels().tolist(), strict=True))


@pytest.mark.parametrize("nested", [True, False])
def test_parquet_rows_keep_their_bytes(tmp_path: Path, nested: bool) -> None:
    labels = [n % 3 for n in range(30)]
    _files(tmp_path, labels, nested=nested)
    write = WriteSettings(shard_samples=5)
    manifest = prepare(_settings(tmp_path, write=write), tmp_path / "out")
    assert manifest.classes == ("0", "1", "2")
    assert _stored(open_view(DataView(path="out", split="train"), tmp_path)) == dict(
        zip(IMAGES[:22], labels[:22], strict=True)
    )
    assert open_view(DataView(path="out", split="test"), tmp_path).samples == 8
    source = open_source(_settings(tmp_path)).splits["train"]
    assert {item.extension for item in source.items(np.arange(22))} == {"jpg", "png"}
    assert [item.key for item in source.items(np.array([9, 2]))] == ["train/00000009", "train/00000002"]


def test_class_names_from_the_file_the_values_and_the_settings(tmp_path: Path) -> None:
    _files(tmp_path, [("cat", "ant", "bee")[n % 3] for n in range(30)])
    assert open_source(_settings(tmp_path)).classes == ("ant", "bee", "cat")
    info = {"info": {"features": {"label": {"names": ["x", "y", "z"], "_type": "ClassLabel"}}}}
    _files(tmp_path, [n % 3 for n in range(30)], huggingface=json.dumps(info))
    assert open_source(_settings(tmp_path)).classes == ("x", "y", "z")
    assert open_source(_settings(tmp_path, classes=("k", "l", "m", "n"))).classes == ("k", "l", "m", "n")


def test_messages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*train-0\.parquet"):
        open_source(_settings(tmp_path))
    _files(tmp_path, [n % 3 for n in range(30)])
    with pytest.raises(UserError, match="no column 'picture'") as caught:
        open_source(_settings(tmp_path, image="picture"))
    assert "one of image, label" in caught.value.expected
    with pytest.raises(DataError, match="the label 2 in column 'label'"):
        open_source(_settings(tmp_path, classes=("a", "b")))
    _files(tmp_path, [None] * 30)
    with pytest.raises(DataError, match="the value None in column 'label'"):
        open_source(_settings(tmp_path))
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"test\.parquet is not Parquet"):
        open_source(_settings(tmp_path))


def test_rows_are_shuffled_across_blocks_but_read_in_few(tmp_path: Path) -> None:
    labels = [0] * 30
    _write(tmp_path / "train-0.parquet", labels)
    _write(tmp_path / "train-1.parquet", labels)
    _write(tmp_path / "test.parquet", labels)
    source = open_source(_settings(tmp_path)).splits["train"]
    order = shuffled(0, "train", source, 12)
    assert np.array_equal(np.sort(order), np.arange(60))
    blocks = np.searchsorted(np.cumsum(source.blocks()), order, side="right")
    assert max(len(np.unique(blocks[n : n + 12])) for n in range(0, 60, 12)) <= 5
    assert (np.diff(order) == 1).mean() < 0.3  # rows of a block do not stay neighbours


def test_samples_with_several_labels(tmp_path: Path) -> None:
    labels = [[n % 5, (n + 2) % 5] if n % 2 else [n % 5] for n in range(30)]
    _files(tmp_path, labels)
    write = WriteSettings(shard_samples=8, chunk_bytes=10_000)
    manifest = prepare(_settings(tmp_path, write=write), tmp_path / "out")
    assert manifest.splits["train"].multi_label
    (first, *_) = manifest.splits["train"].shards
    sample = next(
        iter(webdataset.WebDataset(str(tmp_path / "out" / first.name), shardshuffle=False).decode())
    )
    assert isinstance(sample["json"]["label"], list)
    view = open_view(DataView(path="out", split="train"), tmp_path)
    with TrainLoader(
        view, batch=22, image_size=16, augment=AugmentSettings(), order=OrderSettings(), seed=0, threads=1,
        bad_samples=0, rank=0, world=1, steps=2,
    ) as loader:  # fmt: skip
        for batch in loader:
            assert batch.labels.dtype == torch.float32
            for sample_id, target in zip(batch.ids.tolist(), batch.labels, strict=True):
                row = int(view.key(sample_id).rsplit("/")[-1])
                assert set(target.nonzero()[:, 0].tolist()) == set(labels[row])
    test = open_view(DataView(path="out", split="test"), tmp_path)
    with EvalLoader(
        test, batch=8, image_size=16, augment=AugmentSettings(), threads=1, rank=0, world=1
    ) as evaluation:
        (batch,) = evaluation
        assert batch.labels.dtype == torch.int64


def _hugging_face(tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
    )

    def part(rows: slice) -> datasets.Dataset:
        images = [{"bytes": data, "path": None} for data in IMAGES[rows]]
        labels = [n % 3 for n in range(30)][rows]
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)

    whole = datasets.DatasetDict({"train": part(slice(0, 22)), "test": part(slice(22, 30))})
    whole.save_to_disk(str(tmp_path / "hf"))


def test_hugging_face_datasets_keep_their_bytes(tmp_path: Path) -> None:
    _hugging_face(tmp_path)
    settings = HuggingFaceSource(source="huggingface", path=str(tmp_path / "hf"))
    manifest = prepare(settings, tmp_path / "out")
    assert manifest.classes == ("ant", "bee", "cat")
    found = _stored(open_view(DataView(path="out", split="train"), tmp_path))
    assert found == {data: n % 3 for n, data in enumerate(IMAGES[:22])}


def test_hugging_face_messages(tmp_path: Path) -> None:
    _hugging_face(tmp_path)
    path = str(tmp_path / "hf")
    with pytest.raises(UserError, match=r"split 'valid' of .* could not be loaded"):
        open_source(HuggingFaceSource(source="huggingface", path=path, test="valid"))
    with pytest.raises(UserError, match="no column 'y' in"):
        open_source(HuggingFaceSource(source="huggingface", path=path, label="y"))
    with pytest.raises(UserError, match="could not be loaded"):
        open_source(HuggingFaceSource(source="huggingface", path=str(tmp_path / "nothing")))

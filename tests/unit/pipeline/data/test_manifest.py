from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.data.manifest import BadImage, Manifest, Shard, Split, load_manifest, save_manifest
from pipeline.errors import DataError

MANIFEST = Manifest(
    ("cat", "dog"),
    {
        "train": Split(3, (Shard("a.tar", "a.npz", 10, 4, 4, "aa"), Shard("b.tar", "b.npz", 9, 2, 3, "bb"))),
        "test": Split(2, (Shard("c.tar", "c.npz", 8, 2, 2, "cc"),), (BadImage("x", "empty"),)),
    },
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_manifest(tmp_path, MANIFEST)
    assert load_manifest(tmp_path) == MANIFEST
    assert load_manifest(tmp_path).splits["train"].samples == 6
    assert [split.multi_label for split in MANIFEST.splits.values()] == [True, False]
    shown = json.loads((tmp_path / "manifest.json").read_text())["splits"]["train"]
    assert (shown["samples"], shown["fingerprint"]) == (6, MANIFEST.splits["train"].fingerprint)


def test_the_fingerprint_is_of_bytes_in_order() -> None:
    train = MANIFEST.splits["train"]
    swapped = Split(3, train.shards[::-1])
    renamed = Split(5, tuple(Shard("/x", "/y", s.bytes, s.samples, s.labels, s.sha256) for s in train.shards))
    assert swapped.fingerprint != train.fingerprint
    assert renamed.fingerprint == train.fingerprint


def test_missing_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json in"):
        load_manifest(tmp_path)
    path = tmp_path / "manifest.json"
    for text, found in (
        ("{", "Expecting"),
        ("[]", "schema 'list'"),
        ('{"schema": 9}', "schema 9"),
        ('{"schema": 1}', "a field"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=found):
            load_manifest(tmp_path)
    save_manifest(tmp_path, MANIFEST)
    path.write_text(path.read_text().replace('"aa"', '"ab"'))
    with pytest.raises(DataError, match=r"fingerprint .* computed"):
        load_manifest(tmp_path)

"""What a prepared dataset is: classes, splits, shards, and a fingerprint.

    DATASET/
      manifest.json       written last: without it there is no dataset
      train/000000.tar    plain tar in the WebDataset convention: KEY.jpg KEY.cls …
      train/000000.npz    its index, see index.py
      test/…

Adopted shards stay where they are; their names in the manifest are then absolute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import CacheSettings
from pipeline.errors import DataError
from pipeline.rundir import write_json

SCHEMA = 1
FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar. `name` and `index` are relative to the dataset's directory, or absolute. `labels` counts
    more than `samples` when samples have several."""

    name: str
    index: str
    bytes: int
    samples: int
    labels: int
    sha256: str


@dataclass(frozen=True, slots=True)
class BadImage:
    """What was left out: an image of the source that could not be decoded (`key`); or a sample, or a part,
    of an adopted shard (`key` names the shard, `reason` what)."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Split:
    """Shards in order. Sample ids count through them from 0 to samples-1.

    `chunk` is the number of consecutive samples of a shard that are shuffled and fetched as one.
    """

    chunk: int
    shards: tuple[Shard, ...]
    bad: tuple[BadImage, ...] = ()

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def multi_label(self) -> bool:
        """Whether some samples have several labels."""
        return any(shard.labels > shard.samples for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """Hash over the shards' hashes in order: equal fingerprints mean equal bytes in equal order."""
        return digest(shard.sha256 for shard in self.shards)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset. `cache` says where nodes keep chunks of remote shards."""

    classes: tuple[str, ...]
    splits: dict[str, Split]
    cache: CacheSettings = field(default_factory=CacheSettings)

    @property
    def fingerprint(self) -> str:
        return digest(f"{name}={split.fingerprint}" for name, split in sorted(self.splits.items()))


def digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def save_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json`: from this moment on the dataset exists."""
    splits = {
        name: {**dataclasses.asdict(split), "samples": split.samples, "fingerprint": split.fingerprint}
        for name, split in manifest.splits.items()
    }
    write_json(
        directory / FILE,
        {
            "schema": SCHEMA,
            "classes": list(manifest.classes),
            "fingerprint": manifest.fingerprint,
            "cache": manifest.cache.model_dump(),
            "splits": splits,
        },
    )


def load_manifest(directory: Path) -> Manifest:
    """The dataset in `directory`.

    Raises:
        DataError: there is none, or its manifest is of another version or damaged.
    """
    path = directory / FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"no {FILE} in {directory}",
            "a prepared dataset: shards with a manifest, which is written last",
            "prepare the dataset, or adopt existing shards with `vitline data index`",
        ) from None
    return parse_manifest(data, str(path))


def parse_manifest(data: bytes, path: str) -> Manifest:
    """A manifest from its bytes; `path` is for messages. See `load_manifest` for its errors."""
    try:
        value = json.loads(data)
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise _damaged(path, f"schema {found!r}")
    try:
        manifest = _from_json(value)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"a field that is missing or of the wrong type ({error})") from error
    if manifest.fingerprint != value["fingerprint"]:
        raise _damaged(path, f"fingerprint {value['fingerprint']}, computed {manifest.fingerprint}")
    return manifest


def _from_json(value: Mapping[str, Any]) -> Manifest:
    splits = {
        name: Split(
            chunk=split["chunk"],
            shards=tuple(Shard(**shard) for shard in split["shards"]),
            bad=tuple(BadImage(**bad) for bad in split["bad"]),
        )
        for name, split in value["splits"].items()
    }
    return Manifest(tuple(value["classes"]), splits, CacheSettings(**value["cache"]))


def _damaged(path: str, found: str) -> DataError:
    return DataError(
        f"{found} in {path}",
        f"a manifest of schema {SCHEMA} as vitline wrote it",
        "prepare the dataset again",
    )

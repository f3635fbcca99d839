"""What stands in `rank-00000-of-00016.json` beside a rank's tensors: where each of them begins, and the
digests of the file's blocks, so that any part of it can be read alone and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.train.blocks import Blocks


@dataclass(frozen=True)
class FileIndex:
    """`tensors`: for each key NAME|KIND|START the byte at which it begins, and its elements (float32)."""

    blocks: Blocks
    tensors: Mapping[str, tuple[int, int]]


def encode(index: FileIndex, meters: Mapping[str, float]) -> bytes:
    """As JSON, with this rank's last figures beside it for people."""
    return json.dumps(
        {
            "bytes": index.blocks.size,
            "blocks": index.blocks.digests.hex(),
            "tensors": {key: list(place) for key, place in index.tensors.items()},
            "meters": dict(meters),
        }
    ).encode()


def decode(data: bytes) -> FileIndex:
    found = json.loads(data)
    tensors = {key: (int(at), int(numel)) for key, (at, numel) in found["tensors"].items()}
    return FileIndex(Blocks(found["bytes"], bytes.fromhex(found["blocks"])), tensors)

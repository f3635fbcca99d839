"""tar → where each sample lies: NumPy arrays in an `.npz` beside the shard, never pickled.

    offset  int64 (n,)   where the image's content starts          size   int64 (n,)   its bytes
    kind    uint8 (n,)   place in scan.KINDS of its extension           label  int32 (n,)   class number
    more    int32 (m,)   further class numbers, sample by sample   more_end int64 (n,) where each sample's end
    keys    uint8 (k,)   all keys, one after the other             key_end int64 (n,)  where each ends
    chunk_end int64 (c,) end of each chunk in the shard, bytes     chunk_hash uint8 (c, 16)  BLAKE2b

Chunks cut a shard without gaps: chunk i is the bytes from chunk_end[i-1] (the first header for i = 0)
to chunk_end[i], with `chunk` samples in it but for the last.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.scan import Scan
from pipeline.errors import DataError
from pipeline.rundir import write_atomic

_HASH_BYTES = 16
_READ = 4 * 2**20


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """One shard's samples, in the order of the tar; the arrays are described above."""

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    kind: NDArray[np.uint8]
    label: NDArray[np.int32]
    more: NDArray[np.int32]
    more_end: NDArray[np.int64]
    keys: NDArray[np.uint8]
    key_end: NDArray[np.int64]
    chunk_end: NDArray[np.int64]
    chunk_hash: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def labels(self) -> int:
        """Labels of all samples together."""
        return len(self.label) + len(self.more)

    def key(self, row: int) -> str:
        start = int(self.key_end[row - 1]) if row else 0
        return self.keys[start : int(self.key_end[row])].tobytes().decode("utf-8", "surrogateescape")


def finish(found: Scan, chunk: int, chunks: Iterator[bytes]) -> tuple[ShardIndex, str]:
    """The index and the SHA-256 of a shard, from a scan and the shard's bytes in order."""
    samples = len(found.offset)
    ends = np.array(
        [found.end[min(i + chunk, samples) - 1] for i in range(0, samples, chunk)], dtype=np.int64
    )
    whole, hashes = _hash(chunks, ends)
    encoded = [key.encode("utf-8", "surrogateescape") for key in found.key]
    index = ShardIndex(
        offset=np.array(found.offset, dtype=np.int64),
        size=np.array(found.size, dtype=np.int64),
        kind=np.array(found.kind, dtype=np.uint8),
        label=np.array([labels[0] for labels in found.label], dtype=np.int32),
        more=np.array([label for labels in found.label for label in labels[1:]], dtype=np.int32),
        more_end=np.cumsum([len(labels) - 1 for labels in found.label], dtype=np.int64),
        keys=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        key_end=np.cumsum([len(key) for key in encoded], dtype=np.int64),
        chunk_end=ends,
        chunk_hash=np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, _HASH_BYTES),
    )
    return index, whole


def chunk_digest(data: bytes) -> bytes:
    """The hash kept for a chunk's bytes."""
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


def _hash(blocks: Iterator[bytes], ends: NDArray[np.int64]) -> tuple[str, list[bytes]]:
    """SHA-256 of everything, and BLAKE2b of the parts that end at `ends`, in one pass."""
    whole, part = hashlib.sha256(), hashlib.blake2b(digest_size=_HASH_BYTES)
    done: list[bytes] = []
    position = 0
    for block in blocks:
        whole.update(block)
        view = memoryview(block)
        while len(done) < len(ends) and ends[len(done)] <= position + len(view):
            cut = int(ends[len(done)]) - position
            part.update(view[:cut])
            done.append(part.digest())
            part = hashlib.blake2b(digest_size=_HASH_BYTES)
            view, position = view[cut:], position + cut
        part.update(view)
        position += len(view)
    assert len(done) == len(ends), "the shard changed while it was indexed"
    return whole.hexdigest(), done


def read_blocks(path: Path) -> Iterator[bytes]:
    """A local file's bytes, a few MiB at a time."""
    with path.open("rb") as file:
        while block := file.read(_READ):
            yield block


def save_index(path: Path, index: ShardIndex) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: getattr(index, name) for name in ShardIndex.__slots__})
    write_atomic(path, buffer.getvalue())


def load_index(
    path: Path, expected_samples: int, read: Callable[[Path], bytes] = Path.read_bytes
) -> ShardIndex:
    """The index in `path`.

    Raises:
        DataError: it is missing, damaged, or of another number of samples than the manifest says.
    """
    arrays: dict[str, Any] = {}
    try:
        with np.load(io.BytesIO(read(path)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in ShardIndex.__slots__}
        found = f"{len(arrays['offset'])} samples"
    except FileNotFoundError:
        found = "no such file"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        found = f"not an index ({error})"
    if not arrays or len(arrays["offset"]) != expected_samples:
        raise DataError(
            f"{found} at {path}",
            f"an index of {expected_samples} samples",
            "index or prepare the dataset again",
        )
    return ShardIndex(**arrays)

"""Indexes that somebody wrote beside remote shards: found, checked and used instead of reading the shards.

    https://…/set/manifest.json         a dataset as `prepare` wrote it, copied to a store as a whole; or
    https://…/set/train/000000.tar      what `vitline data index` wrote, copied to where the shards lie
    https://…/set/train/000000.npz

The manifest is looked for beside the first shard, and one level up. It is used if it names all shards that
are asked for; a shard whose size is another one is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.data.index import load_index
from pipeline.data.manifest import FILE, Manifest, Shard, Split, parse_manifest
from pipeline.data.progress import Progress, Run
from pipeline.data.remote import RemoteFile, is_remote
from pipeline.errors import DataError, ReadError
from pipeline.rundir import write_atomic

log = logging.getLogger(__name__)


def find_beside(
    names: Sequence[str], directory: Path, split: str, progress: Progress, run: Run
) -> tuple[Split, tuple[str, ...]] | None:
    """The split of the shards `names` and its classes; None where no manifest names them all.

    The indexes are copied to `directory`/`split`.

    Raises:
        DataError: a manifest that is damaged, or a shard of another size than it says.
    """
    if not all(is_remote(name) for name in names):
        return None
    for base in _bases(names[0]):
        manifest = _manifest(base)
        if manifest is None:
            continue
        for found in manifest.splits.values():
            known = {_place(base, shard.name): shard for shard in found.shards}
            if not all(name in known for name in names):
                continue
            log.info("%s: the indexes of %s are used", split, f"{base}/{FILE}")
            copied = []
            numbered = [(number, name, known[name]) for number, name in enumerate(names)]
            for shard in run(partial(_copy, base, directory, split), numbered):
                progress.add(shard.samples)
                copied.append(shard)
            return Split(found.chunk, tuple(copied), found.bad), manifest.classes
        log.warning("%s does not name all shards of %s: they are indexed anew", f"{base}/{FILE}", split)
    return None


def _bases(name: str) -> list[str]:
    """Where the manifest of a shard may lie; never above the bucket or the host."""
    parent = name.rpartition("/")[0]
    above = parent.rpartition("/")[0]
    return [parent] if above.endswith(":/") else [parent, above]


def _manifest(base: str) -> Manifest | None:
    file = RemoteFile(f"{base}/{FILE}")
    try:
        data = file.read(0, file.size())
    except ReadError:
        raise
    except DataError:  # no such file, or one that this account may not read
        return None
    return parse_manifest(data, file.url)


def _place(base: str, name: str) -> str:
    return name if is_remote(name) else f"{base}/{name}"


def _copy(base: str, directory: Path, split: str, numbered: tuple[int, str, Shard]) -> Shard:
    """Fetch the index of one shard; the shard itself is only asked for its size."""
    number, name, shard = numbered
    size = RemoteFile(name).size()
    if size != shard.bytes:
        raise DataError(
            f"{size} bytes in {name}, {shard.bytes} in {base}/{FILE}",
            "shards that have not changed since they were indexed",
            "index them again, or remove the manifest there",
        )
    file = RemoteFile(_place(base, shard.index))
    index = f"{split}/{number:06d}.npz"
    write_atomic(directory / index, file.read(0, file.size()))
    load_index(directory / index, shard.samples)
    return replace(shard, name=name, index=index)

"""tar → the samples in it: where image and label lie, and what is wrong with those that cannot be used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.data.labels import MEMBERS, find_label
from pipeline.data.tar import BLOCK, Member, ReadAt, members, refuse
from pipeline.errors import DataError

KINDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "jp2", "avif")
_NAME = re.compile(r"^((?:.*/|)[^./][^./]*)[.]([^/]*)$", re.DOTALL)

Told = Callable[[DataError], None]
"""What is called with a fault: if it returns, what the fault concerns is left out."""


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over the headers found; `end` (n,) is where each sample ends in the tar."""

    offset: list[int]
    size: list[int]
    kind: list[int]
    label: list[tuple[int, ...]]
    key: list[str]
    end: list[int]


def scan(shard: str, size: int, read_at: ReadAt, names: Mapping[str, int], told: Told = refuse) -> Scan:
    """Find the samples of a tar of `size` bytes.

    Args:
        names: class name → number; may be empty.
        told: called with each fault, which names shard and key. If it returns, that sample is left out; of
            a key that comes twice, the second; of a tar that is damaged, what lies in the damage.

    Raises:
        UserError: the tar is compressed.
        DataError: members of a sample are not adjacent, a key comes twice, an image or a label is
            missing, or the tar is damaged.
    """
    found = Scan([], [], [], [], [], [])
    seen: set[str] = set()
    for key, parts in _samples(members(shard, size, read_at, told)):
        where = f"{shard}: {key}"
        try:
            if key in seen:
                raise DataError(
                    f"{where} comes a second time",
                    "unique keys, with the members of a sample next to each other",
                    "write this shard again, sorted by name",
                )
            seen.add(key)
            image, kind = _image(where, parts)
            label = _label(where, parts, read_at, names)
        except DataError as fault:
            told(fault)
            continue
        found.label.append(label)
        found.offset.append(image.offset)
        found.size.append(image.size)
        found.kind.append(kind)
        found.key.append(key)
        end = max(part.offset + -(-part.size // BLOCK) * BLOCK for part in parts.values())
        found.end.append(min(end, size))  # a tar may be cut off where its last block is filled up
    return found


def _samples(stream: Iterator[Member]) -> Iterator[tuple[str, dict[str, Member]]]:
    """Members grouped by key as the webdataset package does: up to the first dot of the file's name."""
    current, parts = "", dict[str, Member]()
    for member in stream:
        match = _NAME.match(member.name.removeprefix("./"))
        if not match:
            continue
        key, extension = match.group(1), match.group(2).lower()
        if parts and (key != current or extension in parts):
            yield current, parts
            parts = {}
        current = key
        parts[extension] = member
    if parts:
        yield current, parts


def _image(where: str, parts: Mapping[str, Member]) -> tuple[Member, int]:
    images = [(part, KINDS.index(extension)) for extension, part in parts.items() if extension in KINDS]
    if len(images) != 1:
        raise DataError(
            f"{where} has {len(images)} images among its members ({', '.join(sorted(parts))})",
            f"one, with an extension of {', '.join(KINDS)}",
            "write this shard again; members of a sample must be next to each other",
        )
    return images[0]


def _label(
    where: str, parts: Mapping[str, Member], read_at: ReadAt, names: Mapping[str, int]
) -> tuple[int, ...]:
    held = [(name, parts[name]) for name in MEMBERS if name in parts]
    if not held:
        raise DataError(
            f"{where} has no label among its members ({', '.join(sorted(parts))})",
            f"a member {' or '.join(MEMBERS)}",
            "write this shard again; members of a sample must be next to each other",
        )
    return find_label(where, ((name, read_at(part.offset, part.size)) for name, part in held), names)

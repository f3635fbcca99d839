"""What `vitline data` prints for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SHOWN = 20  # of what may be thousands
_BAR = 40  # characters of the longest bar
_MEANING = {
    "worst_case": "variance ÷ mean of the class counts, were every chunk of one class; independent draws: 1",
    "measured": "the same from the labels as they are",
    "shards": "different shards in a batch",
    "repeats": "how much more often neighbours have one class than two samples at random; at best 0",
}


def lines_of(value: Mapping[str, Any], indent: str = "") -> str:
    """Nested values as plain lines."""
    lines = []
    for key, item in value.items():
        if isinstance(item, Mapping):
            lines += [f"{indent}{key}:", lines_of(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {item}")
    return "\n".join(lines)


def shown(found: Mapping[str, Any], batch: int) -> str:
    """What `vitline data show` says of a dataset; `found` is what `--json` prints."""
    lines = [f"classes: {len(found['classes'])}", f"fingerprint: {found['fingerprint']}"]
    for name, split in found["splits"].items():
        facts = {key: item for key, item in split.items() if key not in ("per_class", "left_out")}
        lines += [f"{name}:", lines_of(facts, "  ")]
        lines += [f"  {line}" for line in left_out(split["left_out"])]
        lines += [f"  {line}" for line in histogram(found["classes"], split["per_class"])]
    lines.append(f"mixing of batches of {batch}:")
    lines += [f"  {key}: {value:.3g}    ({_MEANING[key]})" for key, value in found["mixing"].items()]
    return "\n".join(lines)


def left_out(bad: Sequence[Mapping[str, str]]) -> Iterable[str]:
    """What is not part of a split, and why."""
    yield f"left out: {len(bad)}"
    for one in bad[:_SHOWN]:
        yield f"  {one['key']}: {one['reason']}"
    if len(bad) > _SHOWN:
        yield f"  and {len(bad) - _SHOWN} more"


def histogram(classes: Sequence[str], counts: Sequence[int]) -> Iterable[str]:
    """A bar for each class, with its samples; of many classes, for the largest and the smallest."""
    yield f"samples per class: {min(counts)} to {max(counts)}"
    order: list[int | None] = list(range(len(counts)))
    if len(counts) > 2 * _SHOWN:
        by_size = sorted(range(len(counts)), key=lambda number: -counts[number])
        order = [*by_size[:_SHOWN], None, *by_size[-_SHOWN:]]
    names = [classes[number][:24] for number in order if number is not None]
    name_width, width = max(map(len, names)), len(str(max(counts)))
    for number in order:
        if number is None:
            yield f"  … {len(counts) - 2 * _SHOWN} classes between them"
            continue
        bar = "█" * round(_BAR * counts[number] / max(1, max(counts)))
        yield f"  {classes[number][:24]:{name_width}}  {counts[number]:{width}}  {bar}".rstrip()

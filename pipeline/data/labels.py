"""What the label member of a sample says: `cls`, `json` or `txt` → class numbers.

`cls` and `txt` hold a number or a class name; `json` an object with "label", "cls" or "class_id", which
may be a list: several labels of one sample. Of several members the first of this order counts; a `json`
without a label (img2dataset's, with where an image comes from) leaves it to `txt`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pipeline.errors import DataError

MEMBERS = ("cls", "json", "txt")
_FIELDS = ("label", "cls", "class_id")


def label_member(label: int | tuple[int, ...]) -> dict[str, bytes]:
    """The member that holds a label: `cls` for one, as everybody reads it; `json` for several."""
    if isinstance(label, tuple):
        return {"json": json.dumps({"label": list(label)}).encode()}
    return {"cls": str(label).encode()}


def find_label(where: str, members: Iterable[tuple[str, bytes]], names: Mapping[str, int]) -> tuple[int, ...]:
    """The class numbers of a sample, at least one, none twice.

    Args:
        where: shard and key, for messages.
        members: (one of MEMBERS, content), in the order of MEMBERS, at least one.
        names: class name → number; may be empty.

    Raises:
        DataError: there is no number and no known name in them.
    """
    extension, value = "", None
    for extension, content in members:
        value = _value(where, extension, content)
        if value is not None:
            break
    if isinstance(value, list) and value:
        return tuple(dict.fromkeys(_number(where, extension, item, names) for item in value))
    return (_number(where, extension, value, names),)


def _value(where: str, extension: str, content: bytes) -> object:
    """What a member says; None for a `json` without a label."""
    try:
        if extension != "json":
            return content.decode("utf-8").strip()
        fields = json.loads(content)
        return next((fields[name] for name in _FIELDS if name in fields), None)
    except (ValueError, TypeError) as error:
        raise _no_label(where, extension, f"{content[:40]!r} ({error})") from error


def _number(where: str, extension: str, value: object, names: Mapping[str, int]) -> int:
    if isinstance(value, str) and value in names:
        return names[value]
    try:
        number = int(str(value))
    except ValueError:
        raise _no_label(where, extension, repr(value)[:60]) from None
    if not 0 <= number < 2**31 or (names and number >= len(names)):
        expected = f"0 to {len(names) - 1}" if names else "0 to 2147483647"
        raise DataError(
            f"label {number} in {where}.{extension}", f"a class number, {expected}", "correct the label"
        )
    return number


def _no_label(where: str, extension: str, found: str) -> DataError:
    return DataError(
        f"{found} in {where}.{extension}",
        f"a class number or a class name; in json under one of {', '.join(_FIELDS)}",
        "correct the label, or list the names under `classes` of the dataset",
    )

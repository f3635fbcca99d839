"""Label columns of tables → class numbers and class names.

A label is a number, a name, or a list of either (several labels a sample).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError

Label = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of each split by row, and the names of all classes."""

    classes: tuple[str, ...]
    splits: dict[str, list[Label]]


def number_labels(where: str, values: Mapping[str, list[Any]], names: Iterable[str] | None) -> Labels:
    """Number the labels in the columns of both splits.

    Args:
        where: the column, for messages.
        values: split → one value a row: int, str, or a list of these.
        names: of the classes. None: the names that occur, sorted; or the numbers from 0 to the largest.

    Raises:
        DataError: a value is missing or of another type, out of range, or a name that is not known.
    """
    flat = _checked(where, values)
    if names is None:
        strings = sorted({item for item in flat if isinstance(item, str)})
        top = max((item for item in flat if isinstance(item, int)), default=-1)
        names = strings or [str(number) for number in range(top + 1)]
    classes = tuple(names)
    number = {name: place for place, name in enumerate(classes)}
    for item in flat:
        if item not in number and not (isinstance(item, int) and 0 <= item < len(classes)):
            raise DataError(
                f"the label {item!r} in {where}",
                f"one of {len(classes)} class names, or a number from 0 to {len(classes) - 1}",
                "correct the column, or list the names under `classes` of the dataset",
            )

    def one(item: int | str) -> int:
        return item if isinstance(item, int) else number[item]

    def numbered(value: Any) -> Label:
        return tuple(one(item) for item in value) if isinstance(value, list | tuple) else one(value)

    return Labels(classes, {split: [numbered(value) for value in column] for split, column in values.items()})


def _checked(where: str, values: Mapping[str, list[Any]]) -> list[int | str]:
    """All labels of all rows, in one list."""
    flat = [item for column in values.values() for value in column for item in _items(value)]
    strange = [item for item in flat if not isinstance(item, int | str) or isinstance(item, bool)]
    strange += [value for column in values.values() for value in column if not _items(value)]
    if strange:
        raise DataError(
            f"the value {strange[0]!r} in {where}",
            "class numbers, class names, or lists of them, none of them empty",
            "correct the column, or name another one",
        )
    return flat


def _items(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]

"""What a value of a configuration must be: nothing is returned, or ValueError with one message.

Every message says what was found, what was expected and what to do. Nothing here knows a model.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from math import isfinite


def check_known(kind: str, found: str, known: Iterable[str]) -> None:
    """Refuse a word that is not in `known`, naming the nearest ones."""
    known = list(known)
    if found in known:
        return
    near = get_close_matches(found, known, n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"unknown {kind} {found!r}; {advice}")


def check_positive(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least 1; correct it")


def check_pair(name: str, value: object) -> None:
    """Refuse anything but two whole numbers of at least 1, height before width."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}, expected a height and a width; give one number or two")
    for side in value:
        check_positive(name, side)


def check_rate(name: str, value: object) -> None:
    """Refuse anything but a number in [0, 1)."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError(
            f"{name} is {value!r}, expected a number from 0 up to, but not including, 1; correct it"
        )


def check_positive_number(name: str, value: object) -> None:
    """Refuse anything but a finite number above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"{name} is {value!r}, expected a number above 0; correct it")


def check_finite(name: str, value: object) -> None:
    """Refuse anything but a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value):
        raise ValueError(f"{name} is {value!r}, expected a finite number; correct it")


def check_flag(name: str, value: object) -> None:
    """Refuse anything but True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false; correct it")


def check_stages(name: str, value: object, *, least: int) -> None:
    """Refuse anything but a tuple of at least `least` whole numbers, the residual units of each stage."""
    if not isinstance(value, tuple) or len(value) < least:
        raise ValueError(
            f"{name} is {value!r}, expected a list of at least {least} numbers, one a stage; correct it"
        )
    for units in value:
        check_positive(name, units)


def check_word(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not one of `allowed`."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}; correct it")
    check_known(name, value, allowed)

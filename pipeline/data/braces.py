"""Names with braces → names, as a shell expands them; no shell is involved."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> list[str]:
    """'a-{08..10}.tar' → a-08.tar, a-09.tar, a-10.tar; '{a,b}.tar' → a.tar, b.tar; several multiply."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    numbers = _RANGE.fullmatch(match.group(1))
    if numbers:
        first, last = numbers.groups()
        step = 1 if int(first) <= int(last) else -1
        width = len(first) if first.startswith("0") else 0
        values = [f"{n:0{width}d}" for n in range(int(first), int(last) + step, step)]
    else:
        values = match.group(1).split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [text for value in values for text in expand_braces(before + value + after)]

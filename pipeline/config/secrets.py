"""Credentials do not stand in settings: these are stored, sent to MLflow and shown in reports.

They come from the environment, from files of the tools that read the data (~/.aws), or by the name of a
variable where a setting asks for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

# Names of query parameters that hold a credential: signed URLs of the object stores, and plain ones.
_SECRET = re.compile(
    r"(token|secret|password|passwd|pwd|api_?key|^key$|credential|signature|^sig$|auth)", re.I
)


def has_credentials(url: str) -> bool:
    """Whether a URL holds a password, a user of http(s), or a query parameter that is one.

    A user alone is no secret where it says whose database or bucket it is.
    """
    if "://" not in url:
        return False
    try:
        parts = urlsplit(url)
        if parts.password or (parts.scheme.startswith("http") and parts.username):
            return True
    except ValueError:
        return "@" in url
    return any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True))


def settings_with_credentials(value: Any, place: str = "") -> Iterator[str]:
    """Dotted names of the settings whose text is such a URL."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from settings_with_credentials(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from settings_with_credentials(item, f"{place}.{number}")
    elif isinstance(value, str) and has_credentials(value):
        yield place

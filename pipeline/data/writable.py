"""Directories at URLs that can be written to: s3, gs, abfs, a mounted path, whatever else fsspec knows."""

from __future__ import annotations

import json
from typing import Any

import fsspec

from pipeline.errors import ConfigError, EnvironmentUnfit

_READ_ONLY = ("http", "https")
# They have no directories to make; s3fs would make a mistyped bucket.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "memory"}
_EXTRAS = {"s3": "s3", "gs": "gcs"}


def open_directory(url: str, setting: str) -> tuple[Any, str, bool]:
    """Its fsspec filesystem, its path there, and whether that is an object store, without directories.

    Args:
        setting: where the URL stands, for messages.

    Raises:
        ConfigError: nothing can be written to such a URL.
        EnvironmentUnfit: a package is missing.
    """
    scheme = url.partition("://")[0] if "://" in url else "file"
    if scheme in _READ_ONLY:
        raise ConfigError(f"{setting} {url!r}", "a URL that can be written to", "use s3://, gs:// or a path")
    try:
        files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        raise EnvironmentUnfit(
            f"{setting} {url!r} needs a package that is not installed ({error})",
            "a package that reads and writes such URLs",
            f"pip install 'vitline[{extra}]' from the checkout" if extra else "install the named package",
        ) from error
    except ValueError as error:
        raise ConfigError(f"{setting} {url!r} ({error})", "a URL that fsspec knows", "correct it") from error
    return files, str(root).rstrip("/"), scheme in _OBJECT_STORES


def json_object(data: bytes | None) -> dict[str, Any] | None:
    """What a file holds; None for one that is not there, torn, or no JSON object."""
    try:
        found = json.loads(data or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None

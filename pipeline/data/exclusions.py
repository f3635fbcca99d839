"""Lists of samples that a reader leaves out.

    {"fingerprint": HEX, "ids": [3, 17], "why": "…", "compared": [{"with": …, "fingerprint": HEX, …}]}

The fingerprint is that of the split the ids belong to, so a list is never applied to another one.
`compared` says which other splits the list comes from, for the report; see duplicates.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Split, digest
from pipeline.errors import UserError
from pipeline.rundir import write_json


def write_exclusions(
    path: Path,
    fingerprint: str,
    ids: NDArray[np.int64],
    why: str,
    compared: Sequence[Mapping[str, Any]] = (),
) -> None:
    value = {"fingerprint": fingerprint, "ids": sorted(set(ids.tolist())), "why": why}
    write_json(path, {**value, "compared": [dict(other) for other in compared]})


def read_exclusions(path: Path, split: Split) -> NDArray[np.int64]:
    """The ids in `path`.

    Raises:
        UserError: there is no such list, it is of another split, or names samples that the split has not.
    """
    fingerprint, ids = _load(path)
    if fingerprint != split.fingerprint:
        raise UserError(
            f"exclusions for fingerprint {fingerprint} at {path}",
            f"the split's own, {split.fingerprint}",
            "make the list again for this dataset",
        )
    if len(ids) and not 0 <= ids.min() <= ids.max() < split.samples:
        raise UserError(
            f"sample {ids.max() if ids.min() >= 0 else ids.min()} at {path}",
            f"ids from 0 to {split.samples - 1}",
            "make the list again for this dataset",
        )
    return ids


def exclusions_digest(path: Path) -> str:
    """What a list does, as a digest: the same for the same samples of the same split.

    Raises:
        UserError: there is no such list.
    """
    fingerprint, ids = _load(path)
    return digest([fingerprint, *map(str, np.unique(ids).tolist())])


def _load(path: Path) -> tuple[str, NDArray[np.int64]]:
    try:
        value = json.loads(path.read_bytes())
        return str(value["fingerprint"]), np.array(value["ids"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(
            f"no list of exclusions at {path} ({type(error).__name__})",
            "JSON with `fingerprint` and `ids`",
            "write it with `vitline data duplicates`, or correct `exclude`",
        ) from error

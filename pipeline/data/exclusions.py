"""Lists of samples that a reader leaves out.

    {"fingerprint": HEX, "ids": [3, 17], "why": "…"}

The fingerprint is that of the split the ids belong to, so a list is never applied to another one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import Split
from pipeline.errors import UserError
from pipeline.rundir import write_json


def write_exclusions(path: Path, fingerprint: str, ids: NDArray[np.int64], why: str) -> None:
    write_json(path, {"fingerprint": fingerprint, "ids": sorted(set(ids.tolist())), "why": why})


def read_exclusions(path: Path, split: Split) -> NDArray[np.int64]:
    """The ids in `path`.

    Raises:
        UserError: there is no such list, or it is of another split.
    """
    try:
        value = json.loads(path.read_bytes())
        fingerprint, ids = value["fingerprint"], np.array(value["ids"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"no list of exclusions at {path} ({type(error).__name__})",
            "JSON with `fingerprint` and `ids`",
            "write it with `vitline data duplicates`, or correct `exclude`",
        ) from error
    if fingerprint != split.fingerprint:
        raise UserError(
            f"exclusions for fingerprint {fingerprint} at {path}",
            f"the split's own, {split.fingerprint}",
            "make the list again for this dataset",
        )
    return ids

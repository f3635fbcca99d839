"""Our weight files: safetensors with the model's configuration in the header.

    FILE.safetensors
      header   vitline.format   "1"
               vitline.config   the configuration as JSON (`ModelConfig.to_dict`)
               any other key    given by the caller (step, run, fingerprint ...), text
      tensors  one for each parameter, under its name in the model

A file appears whole or not at all: it is written beside its place, flushed to the disk and renamed. No pickle
is read or written. Loading never leaves a model half changed.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT_KEY = "vitline.format"
CONFIG_KEY = "vitline.config"
FORMAT = "1"
Shape = tuple[int, ...]


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write tensors and configuration to `path`, replacing what was there in one step.

    `config` must be plain JSON. `extra` is more header text; its keys must not start with "vitline.".
    """
    write_tensors(path, state, header_of(config, extra))


def header_of(config: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header's text; see `save_weights`."""
    reserved = [key for key in extra or {} if key.startswith("vitline.")]
    if reserved:
        raise ValueError(
            f"header key {reserved[0]!r} starts with 'vitline.', which is reserved; choose another name"
        )
    return {FORMAT_KEY: FORMAT, CONFIG_KEY: json.dumps(dict(config), sort_keys=True), **(extra or {})}


def load_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors (on the CPU), configuration and further header text of a file that `save_weights` wrote.

    Raises ValueError for a damaged file, one without our header, or one of a newer format; FileNotFoundError
    if absent.
    """
    state, header = read_tensors(path)
    found = header.pop(FORMAT_KEY, None)
    if found is None:
        raise ValueError(
            f"{path} is safetensors without a vitline header; another library wrote it: bring it in with "
            "`vitline model import`"
        )
    if found != FORMAT:
        raise ValueError(
            f"{path} has weight format {found!r}, this version reads {FORMAT!r}; use a newer version"
        )
    return state, json.loads(header.pop(CONFIG_KEY)), header


def write_tensors(path: str | Path, state: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write safetensors in one step, whole or not at all."""
    with written_whole(path) as beside:
        save_file(_apart(state), beside, dict(header))


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A place beside `path` to write to; flushed and renamed to `path` if all went well, removed if not."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    beside.touch()
    # As the umask says; safetensors would make a file that its owner alone may read.
    mode = beside.stat().st_mode & 0o777
    try:
        yield beside
        with beside.open("rb") as handle:
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; those that share memory (slices, transposes) are copied, or safetensors
    refuses.
    """
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        tensor = value.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        apart[key] = tensor
    return apart


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (on the CPU) and the header text of any safetensors file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weight file at {path}; check the path")
    try:
        with safe_open(str(path), framework="pt") as handle:
            keys = list(handle.keys())
            return {key: handle.get_tensor(key) for key in keys}, dict(handle.metadata() or {})
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); copy or export it again"
        ) from error


def load_into(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into a model, all of it or nothing.

    Every key that is missing, unexpected or of the wrong shape is named in one ValueError, and then the model
    is as before.
    """
    check_keys(
        {key: tuple(value.shape) for key, value in model.state_dict().items()},
        {key: tuple(value.shape) for key, value in state.items()},
    )
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    model.load_state_dict(dict(state), strict=True, assign=on_meta)


def check_keys(expected: Mapping[str, Shape | None], found: Mapping[str, Shape]) -> None:
    """Raise one ValueError naming each tensor that is missing, unexpected or misshapen (None: any shape)."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    misshapen = [
        f"{key} is {shape}, expected {expected[key]}"
        for key, shape in found.items()
        if expected.get(key) is not None and shape != expected[key]
    ]
    parts = [("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen)]
    faults = [f"{len(keys)} {kind}: {', '.join(keys)}" for kind, keys in parts if keys]
    if faults:
        raise ValueError(
            f"the weights do not fit the model; {'; '.join(faults)}. Nothing was loaded: use the "
            "configuration the weights were made with, or adapt them to this one (model.weights.adapt)"
        )

"""What `vitline model list|show|import|export` prints: facts about models, as tables or JSON.

Parameters count everything trainable; multiply-adds are those of one image, forward, matrix products and
convolutions only, without the head (model/flops.py).
"""

from __future__ import annotations

import fnmatch
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from model.checks import check_known
from model.config import BiTConfig, ModelConfig, as_pair, by, config_from_dict
from model.flops import count_parameters, macs, training_exaflops
from model.weights.exchange import Imported
from model.weights.files import load_into, load_weights
from model.zoo import build, list_models, model_config

_LISTED_CLASSES, _LISTED_SIZE = 1000, 224
_SIZES = {
    "ti": "Tiny (DeiT)",
    "s": "Small (DeiT)",
    "b": "Base of the paper",
    "l": "Large of the paper",
    "h": "Huge of the paper",
    "so400m": "So400m (arXiv 2305.13035)",
    "g": "g (arXiv 2106.04560)",
    "G": "G (arXiv 2106.04560)",
}
_PATCHES = {4: "; for images of 32 to 64 px", 8: "; for small images or fine detail", 32: "; fast and coarse"}
# Layouts whose published weights saw pixels scaled otherwise than to [-1, 1], or may have.
_OTHER_SCALES = ("timm", "torchvision", "huggingface")

Facts = dict[str, Any]


def list_models_like(pattern: str | None) -> list[Facts]:
    """Facts of the models whose name matches, all without a pattern; ValueError if none does."""
    names = list_models()
    if pattern is not None:
        wild = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
        chosen = [name for name in names if fnmatch.fnmatchcase(name, wild)]
        if not chosen:
            check_known("model", pattern, names)
        names = chosen
    return [_row(name) for name in names]


def _row(name: str) -> Facts:
    config = model_config(name, num_classes=_LISTED_CLASSES, image_size=_LISTED_SIZE)
    return {
        "name": name,
        "parameters": count_parameters(config),
        "classes": _LISTED_CLASSES,
        "macs": macs(config),
        "image_size": _LISTED_SIZE,
        "for": _purpose(name, config),
    }


def _purpose(name: str, config: ModelConfig) -> str:
    if isinstance(config, BiTConfig):
        return "BiT ResNet: the CNN that the paper compares with"
    size = _SIZES[re.sub(r".*vit_|\d+$", "", name)]
    if config.stem is not None:
        source = "the paper" if name.startswith("r50") else "the authors' code"
        return f"hybrid of {source}: a ResNet, then {size.split()[0]}"
    return size + _PATCHES.get(config.patch[0], "")


def print_list(rows: list[Facts], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"schema": 1, "models": rows}, indent=1))
        return
    title = (
        f"{len(rows)} models; parameters with {_LISTED_CLASSES} classes, multiply-adds at {_LISTED_SIZE} px"
    )
    table = Table("name", title=title, title_justify="left", box=box.SIMPLE)
    for head in ("parameters", "GMACs"):
        table.add_column(head, justify="right")
    table.add_column("for")
    for row in rows:
        table.add_row(
            row["name"], f"{row['parameters'] / 1e6:,.1f} M", f"{row['macs'] / 1e9:,.2f}", row["for"]
        )
    _console().print(table)


def show_name(
    name: str, size: int | tuple[int, int] | None, classes: int | None, options: dict[str, Any]
) -> Facts:
    """Facts of a model of the zoo; ValueError for unknown names and options, naming the nearest."""
    config = model_config(
        name, num_classes=classes or _LISTED_CLASSES, image_size=size or _LISTED_SIZE, **options
    )
    return _facts(config)


def show_file(path: Path, size: int | tuple[int, int] | None, classes: int | None) -> Facts:
    """Facts of a weights file, and of its model at another size or number of classes.

    Raises:
        ValueError: not a whole weights file of ours, or one whose tensors do not fit its configuration.
        FileNotFoundError: there is none.
    """
    state, values, header = load_weights(path)
    config = config_from_dict(values)
    with torch.device("meta"):
        load_into(build(config), state)
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()})
    changes: dict[str, Any] = {"image_size": as_pair(size)} if size else {}
    changes |= {"num_classes": classes} if classes else {}
    file = {
        "path": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(state),
        "dtypes": kinds,
        "metadata": {key: _plain(text) for key, text in header.items()},
    }
    return {**_facts(replace(config, **changes)), "file": file}


def _plain(text: str) -> Any:
    """Header text is JSON where it holds more than a word."""
    try:
        return json.loads(text) if text[:1] in ("[", "{") else text
    except json.JSONDecodeError:
        return text


def _facts(config: ModelConfig) -> Facts:
    facts: Facts = {
        "schema": 1,
        "name": config.name,
        "parameters": count_parameters(config),
        "parameters_without_head": count_parameters(config, head=False),
        "macs": macs(config),
        "exaflops_per_million_images": training_exaflops(config, 1e6),
        "tokens": None,
        "config": config.to_dict(),
    }
    if not isinstance(config, BiTConfig):
        facts["tokens"] = {
            "all": config.num_tokens,
            "grid": list(config.grid),
            "patch_pixels": [side * config.stem_stride for side in config.patch],
            "class_token": config.has_class_token,
        }
    return facts


def print_facts(facts: Facts, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    config = dict(facts["config"])
    height, width = config["image_size"]
    head = facts["parameters"] - facts["parameters_without_head"]
    stemless = config.get("stem") is None
    rows = [
        ("image", f"{height} × {width} px"),
        ("parameters", f"{facts['parameters']:,}, {head:,} of them in the head for its classes"),
        ("multiply-adds", f"{facts['macs']:,} an image, forward, without the head"),
        ("training", f"{facts['exaflops_per_million_images']:,.3g} exaFLOP for a million images"),
    ]
    if (tokens := facts["tokens"]) is not None:
        grid, patch = by(tuple(tokens["grid"])), by(tuple(tokens["patch_pixels"]))
        first = ", the class token first" if tokens["class_token"] else ", no class token"
        rows.insert(1, ("tokens", f"{tokens['all']}: a grid of {grid} patches of {patch} px{first}"))
    hidden = ("name", "image_size", *(key for key in config if key.startswith("stem") and stemless))
    rows += [(key, _short(value)) for key, value in config.items() if key not in hidden]
    _print_rows(facts["name"], rows)
    if (file := facts.get("file")) is not None:
        rows = [
            ("size", f"{file['bytes'] / 1e6:,.1f} MB, {file['tensors']} tensors, {', '.join(file['dtypes'])}")
        ]
        rows += [(key, _short(value)) for key, value in file["metadata"].items()]
        _print_rows(file["path"], rows)


def print_import(found: Imported, source: Path, to: Path, *, as_json: bool) -> None:
    """What was found in a foreign file, and where it is now."""
    notes = list(found.notes)
    if found.layout in _OTHER_SCALES:
        notes.append(
            "images are scaled to [-1, 1] here; weights that saw another scale (torchvision's did) should be "
            "fine-tuned before they are scored"
        )
    config = found.config
    facts = {
        "schema": 1,
        "source": str(source),
        "layout": found.layout,
        "file": str(to),
        "tensors": len(found.state),
        "parameters": count_parameters(config),
        "config": config.to_dict(),
        "notes": notes,
    }
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{to}: model {config.name!r} from {source} ({found.layout} layout), {len(found.state)} tensors, "
        f"{facts['parameters']:,} parameters, {by(config.image_size)} px, {config.num_classes} classes"
    )


def print_export(config: ModelConfig, tensors: int, layout: str, out: Path, *, as_json: bool) -> None:
    if as_json:
        facts = {"schema": 1, "file": str(out), "layout": layout, "config": config.to_dict()}
        print(json.dumps(facts, indent=1))
        return
    print(f"{out}: model {config.name!r} in {layout} layout, {tensors} tensors, {config.num_classes} classes")


def _print_rows(title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table, markup=False)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8:
        return f"{len(value)}: {', '.join(map(str, value[:8]))} …"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return str(value)


def _console() -> Console:
    # A file or a pipe has no width of its own; the tables need this much.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)

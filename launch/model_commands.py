"""The commands `vitline model …`: list, show, import, export, inspect.

As in cli.py, nothing heavy is imported until a command runs. What the commands print is made by
model_facts.py. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from zipfile import BadZipFile

import typer
import yaml

from launch.options import Json
from pipeline.errors import UserError

model_app = typer.Typer(no_args_is_help=True, help="Lists, shows, converts and looks into models.")

ImageSize = Annotated[
    str | None, typer.Option(metavar="PIXELS", help="of a side, or height and width as 224x192")
]
Classes = Annotated[int | None, typer.Option(min=1, help="outputs of the head")]
Options = Annotated[
    list[str] | None, typer.Argument(metavar="[OPTION=VALUE]...", help="fields of the model, as heads=3")
]
_WEIGHTS = "weights.safetensors"  # in the directory of a job
# More rollouts than this make a picture that nobody reads.
_MOST_ROLLOUTS = 24


@model_app.command("list")
def list_command(
    pattern: Annotated[
        str | None, typer.Argument(help="part of a name, or a pattern as 'vit_*16'; default: all")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the models by name, with size, cost and what each is for.

    Example: vitline model list 'r50_*'
    """
    from launch.model_facts import list_models_like, print_list

    with one_message("a part of a name, or a pattern with *", "run `vitline model list` for all names"):
        rows = list_models_like(pattern)
    print_list(rows, as_json=as_json)


@model_app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME|FILE", help="name of a model, or a weights file")],
    options: Options = None,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Show a model or a weights file: configuration, parameters, cost, tokens.

    Example: vitline model show vit_b16 --image-size 384
    """
    from launch.model_facts import print_facts, show_file, show_name

    chosen = _options(options)
    with one_message(
        "a name of `vitline model list` with options that fit it, or a weights file", "correct what is wrong"
    ):
        size = _size(image_size)
        if _is_file(name):
            if chosen:
                raise ValueError(f"{', '.join(chosen)} beside a file, which has its own options")
            facts = show_file(_ours(Path(name)), size, num_classes)
        else:
            facts = show_name(name, size, num_classes, chosen)
    print_facts(facts, as_json=as_json)


@model_app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help=".npz, .safetensors or .pth of another library")],
    to: Annotated[Path, typer.Option(metavar="OUT", help="weights file to write, .safetensors")],
    options: Options = None,
    layout: Annotated[
        str | None, typer.Option(help="npz, timm, torchvision or huggingface; default: recognised")
    ] = None,
    name: Annotated[str | None, typer.Option(help="of the model; default: from the shapes")] = None,
    image_size: ImageSize = None,
    num_classes: Classes = None,
    as_json: Json = False,
) -> None:
    """Turn weights of another library into a weights file for training and inspection.

    Example: vitline model import B_16.npz --to vit_b16.safetensors
    """
    from launch.model_facts import print_import
    from model.weights.exchange import import_weights
    from model.weights.files import save_weights

    with one_message(
        "a whole file of a ViT, hybrid or BiT ResNet from the authors, timm, torchvision or Hugging Face",
        "name such a file; what its tensors do not say, give with --layout, --name, --image-size or heads=3",
        file,
    ):
        if to.suffix != ".safetensors":
            raise ValueError(f"--to {to} does not end in .safetensors; rename it")
        found = import_weights(
            file,
            layout=layout,
            name=name,
            image_size=_size(image_size),
            num_classes=num_classes,
            **_options(options),
        )
        _make_room(to, file)
        header = {"source": file.name, "layout": found.layout}
        save_weights(to, found.state, found.config.to_dict(), header)
    print_import(found, file, to, as_json=as_json)


@model_app.command("export")
def export_command(
    file: Annotated[Path, typer.Argument(help="weights file, or the directory of the job that made it")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help=".npz, .safetensors or .pth")],
    layout: Annotated[str, typer.Option(help="npz, timm, torchvision or huggingface")],
    as_json: Json = False,
) -> None:
    """Write a weights file under the names of another library.

    Example: vitline model export weights.safetensors --layout timm vit_b16_timm.safetensors
    """
    from launch.model_facts import print_export
    from model.config import config_from_dict
    from model.weights import huggingface
    from model.weights.exchange import export_weights
    from model.weights.files import load_weights
    from model.weights.layout import as_vit
    from pipeline.rundir import write_json

    with one_message(
        "a weights file whose model the layout has a place for",
        "choose another file, layout or name for the output",
    ):
        state, values, _ = load_weights(_ours(file))
        config = config_from_dict(values)
        _make_room(out, file)
        export_weights(out, layout, state, config)
        if layout == huggingface.NAME:
            # Its readers need this beside the weights.
            write_json(out.with_name("config.json"), huggingface.config_json(as_vit(config, layout)))
    print_export(config, len(state), layout, out, as_json=as_json)


@model_app.command("inspect")
def inspect_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="weights file, or the directory of the job that made it")
    ],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="image files; all count")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="directory for the pictures and insight.json")],
    as_json: Json = False,
) -> None:
    """Draw what a model attends to and what its patch filters and positions have learned.

    After the paper's Figures 6, 7, 10 and 11: rollout.png (where the output
    looks, in up to 24 of the images), filters.png, positions.png,
    distance.png (how far each head looks), and insight.json with the numbers.
    The paper measured distances over 128 images.

    Example: vitline model inspect weights.safetensors photos/*.jpg --out insight
    """
    import torch

    from pipeline.report.insight import draw
    from pipeline.rundir import write_atomic, write_json
    from pipeline.train.trained import load_trained, read_images

    trained = load_trained(_ours(checkpoint))
    if trained.note:
        _note(trained.note)
    pixels = read_images(trained, images)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [str(path) for path in images]
    found = draw(trained.model.to(device), pixels, names, shown=_MOST_ROLLOUTS)
    if not found.drawings:
        raise UserError(
            next(iter(found.left_out.values())), "a Vision Transformer or a hybrid", "inspect another model"
        )
    for picture, reason in found.left_out.items():
        _note(f"no {picture}.png: {reason}")
    with one_message("a directory that can be written", "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
        for picture, drawing in found.drawings.items():
            write_atomic(out / f"{picture}.png", drawing.png)
        config = trained.model.config.to_dict()
        write_json(
            out / "insight.json",
            {"schema": 1, "model": config, **found.numbers, "left_out": found.left_out},
        )
    written = [*(out / f"{picture}.png" for picture in found.drawings), out / "insight.json"]
    if as_json:
        paths = [str(path) for path in written]
        typer.echo(json.dumps({"schema": 1, "files": paths, "left_out": found.left_out}, indent=1))
    else:
        for path in written:
            typer.echo(str(path))


@contextmanager
def one_message(expected: str, do: str, source: Path | None = None) -> Iterator[None]:
    """What model/ says about a user's mistake, and the system about a file, as one message.

    `source` is a file of others that is read meanwhile: PyTorch's reader raises RuntimeError for damage.
    """
    try:
        yield
    except (ValueError, OSError, EOFError, BadZipFile, RuntimeError) as error:
        if isinstance(error, RuntimeError) and source is None:
            raise
        said = str(error) or f"ends too early ({type(error).__name__})"
        if isinstance(error, RuntimeError):
            said = said.splitlines()[0].split(". ")[0]
        about = "" if source is None or source.name in said else f"{source}: "
        raise UserError(about + said, expected, do) from error


def _is_file(name: str) -> bool:
    path = Path(name)
    return "/" in name or path.suffix != "" or path.is_file() or (path / _WEIGHTS).is_file()


def _ours(path: Path) -> Path:
    """A weights file of ours, also by the directory of its job."""
    if path.is_dir():
        return path / _WEIGHTS
    if path.exists() and path.suffix != ".safetensors":
        raise UserError(
            f"{path} ends in {path.suffix or 'nothing'!r}",
            "a weights file of ours, .safetensors",
            "bring files of other libraries in with `vitline model import`",
        )
    return path


def _size(text: str | None) -> int | tuple[int, int] | None:
    """Pixels of `--image-size`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"--image-size {text}, expected pixels as 224, or height x width as 224x192")
    sides = [int(part) for part in parts]
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _options(pairs: list[str] | None) -> dict[str, Any]:
    """`heads=3 gelu=erf` → {"heads": 3, "gelu": "erf"}."""
    chosen = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"option {pair!r}", "OPTION=VALUE, as heads=3", "write it so, or leave it out")
        try:
            chosen[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"option {pair!r}", "a number or a word", "write it so, or quote it") from error
    return chosen


def _make_room(path: Path, source: Path) -> None:
    """The directory for `path`, which must not be the file that it is made from."""
    if path.exists() and source.exists() and path.samefile(source):
        raise ValueError(f"{path} would replace the file it is made from; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)

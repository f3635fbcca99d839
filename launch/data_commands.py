"""The commands `vitline data …`; what they do is imported when they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from launch.options import Config, Json, Overrides

data_app = typer.Typer(no_args_is_help=True, help="Shows, checks and adopts datasets.")

Parallel = Annotated[int, typer.Option(min=1, help="shards that are read at once")]
Dataset = Annotated[Path, typer.Argument(help="directory with a manifest.json, as runs/demo/jobs/DIGEST")]


@data_app.command("order")
def order(
    config: Config,
    step: Annotated[
        int, typer.Option(min=0, help="number of the batch, from 0; step t + 1 of the log consumes batch t")
    ],
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="also say which rank reads each sample")] = 1,
) -> None:
    """Print the sample ids of one pre-training batch as JSON lines.

    Example: vitline data order configs/demo.yaml --step 500 --ranks 2
    """
    from launch.order import print_order
    from pipeline.config_io import load_config

    print_order(load_config(config, overrides or []), step, ranks)


@data_app.command("index")
def index(
    train: Annotated[str, typer.Argument(help="shards of train, as 'shards/train-{0000..0009}.tar'")],
    test: Annotated[str, typer.Argument(help="shards of test")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="where manifest and indexes go")],
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="class names, one a line; default: the numbers themselves"),
    ] = None,
    allow_damaged: Annotated[
        bool,
        typer.Option(
            "--allow-damaged",
            help="of shards cut off or damaged, and samples incomplete or twice there, adopt what is whole",
        ),
    ] = False,
    parallel: Parallel = 4,
    as_json: Json = False,
) -> None:
    """Adopt shards that others wrote: one pass over each, manifest and indexes, nothing is copied.

    Example: vitline data index 'train-{00..09}.tar' 'test-{00..01}.tar' --to imagenet
    """
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import asdict

    from launch.data_progress import LineOfProgress
    from launch.data_text import left_out, lines_of
    from pipeline.config import WebdatasetSource
    from pipeline.data.write import prepare

    source = WebdatasetSource(
        source="webdataset", train=train, test=test, classes=_names(classes), allow_damaged=allow_damaged
    )
    with ThreadPoolExecutor(parallel) as pool, LineOfProgress("index") as report:
        manifest = prepare(source, to, run=pool.map, report=report)
    splits = {name: split.samples for name, split in manifest.splits.items()}
    bad = [{"split": name, **asdict(one)} for name, split in manifest.splits.items() for one in split.bad]
    found: dict[str, Any] = {"directory": str(to), "classes": len(manifest.classes), "samples": splits}
    if as_json:
        typer.echo(json.dumps({**found, "left_out": bad}))
        return
    typer.echo(lines_of(found))
    if bad:
        typer.echo("\n".join(left_out(bad)))


def _names(file: Path | None) -> tuple[str, ...] | None:
    """Class names from a file; None without one."""
    from pipeline.errors import UserError

    if file is None:
        return None
    try:
        names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"no class names in {file} ({error})", "a text file with one name a line", "correct --classes"
        ) from error
    if len(set(names)) < len(names) or not names:
        raise UserError(
            f"{len(names)} class names in {file}, {len(set(names))} of them different",
            "one name a line, each once, in the order of the class numbers",
            "correct the file",
        )
    return names


@data_app.command("verify")
def verify(
    dataset: Dataset,
    images: Annotated[bool, typer.Option(help="decode each image too")] = True,
    parallel: Parallel = 2,
    as_json: Json = False,
) -> None:
    """Check a dataset: every shard there and unchanged, every index right, every image readable.

    Example: vitline data verify runs/demo/jobs/DIGEST
    """
    from concurrent.futures import ThreadPoolExecutor
    from dataclasses import asdict

    from launch.data_progress import LineOfProgress
    from pipeline.data.verify import verify as check
    from pipeline.errors import DataError

    with ThreadPoolExecutor(parallel) as pool, LineOfProgress("verify") as report:
        found = check(dataset, images=images, run=pool.map, report=report)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
    else:
        typer.echo(f"{found.samples} samples looked at, {len(found.problems)} problems")
        for problem in found.problems[:20]:
            typer.echo(f"  {problem.split} {problem.shard} {problem.key}".rstrip() + f": {problem.reason}")
        if len(found.problems) > 20:
            typer.echo(f"  and {len(found.problems) - 20} more; --json has them all")
        if found.known:
            typer.echo(f"{found.known} left out when the dataset was made; vitline data show lists them")
    if found.problems:
        first = found.problems[0]
        where = f"{first.shard} {first.key}".strip()
        raise DataError(
            f"{len(found.problems)} problems in {dataset}, the first: {where}: {first.reason}",
            "the shards and images that the manifest describes",
            "restore the shards, or prepare the dataset again; images that cannot be decoded may stay: "
            "training gives them weight 0 while they are no more than `bad_samples` allows",
        )


@data_app.command("show")
def show(
    dataset: Dataset,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="draw some images of train here")] = None,
    batch: Annotated[int, typer.Option(min=1, help="for the figure of how well batches mix")] = 256,
    as_json: Json = False,
) -> None:
    """Show what a dataset holds: samples, classes, sizes, and how well the order mixes them.

    Example: vitline data show runs/demo/jobs/DIGEST --sheet images.png
    """
    from launch.data_text import shown
    from pipeline.config import DataView, OrderSettings
    from pipeline.data.manifest import load_manifest
    from pipeline.data.show import contact_sheet, mixing, summary
    from pipeline.data.view import View, open_view

    root = dataset.resolve()
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    views: dict[str, View] = {
        name: open_view(DataView(path=root.name, split=name), root.parent)
        for name in splits
        if name in load_manifest(root).splits
    }
    found: dict[str, Any] = summary(root, views)
    found["mixing"] = mixing(views["train"], OrderSettings(), seed=0, batch=batch)
    if sheet is not None:
        contact_sheet(sheet, views["train"])
    typer.echo(json.dumps(found) if as_json else shown(found, batch))


@data_app.command("duplicates")
def duplicates(
    first: Dataset,
    others: Annotated[list[Path], typer.Argument(help="directories of the datasets with the test splits")],
    bits: Annotated[int, typer.Option(min=0, max=16, help="of 64, by which hashes may differ")] = 6,
    exclude: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the list that pretrain.exclude takes")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="PNG", help="draw the pairs here")] = None,
    threads: Annotated[int, typer.Option(min=1, help="that decode images")] = 1,
    as_json: Json = False,
) -> None:
    """Find images of one dataset's train split that stand in others' test splits, exactly or nearly.

    Example: vitline data duplicates runs/demo/jobs/DIGEST runs/demo/jobs/OTHER --exclude shared.json
    """
    from launch.duplicates import search

    found = search(first, others, bits=bits, threads=threads)
    written = [] if sheet is None else found.write_sheets(sheet)
    if exclude is not None:
        found.write_exclusions(exclude)
    if as_json:
        typer.echo(json.dumps(found.rows()))
        return
    for line in found.lines():
        typer.echo(line)
    for path, drawn, pairs in written:
        typer.echo(f"{drawn} of {pairs} pairs drawn in {path}")
    if exclude is not None:
        typer.echo(
            f"{len(found.ids)} samples of train listed in {exclude}; pre-training leaves them out with"
        )
        typer.echo(f"  pretrain.exclude={{NAME: {exclude}}}    NAME: the dataset's under datasets:")

"""The command `vitline`.

This module imports neither PyTorch nor Ray nor MLflow: `--help` and completion answer at once, and each
command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from launch import launch_commands, plan_commands, retrain_commands, run_commands
from launch.compare_command import compare
from launch.data_commands import data_app
from launch.model_commands import model_app
from launch.options import Config, Json, Overrides
from launch.schedule_commands import schedule_app
from pipeline.errors import VitlineError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Pre-trains Vision Transformers and shows what the pre-training bought.",
)
bench_app = typer.Typer(no_args_is_help=True, help="Measures side by side with peers.")
config_app = typer.Typer(no_args_is_help=True, help="Shows settings and their schema.")


def main() -> None:
    """Entry point: foreseen faults become one message and their exit code."""
    try:
        app(standalone_mode=True)
    except VitlineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vitline {metadata.version('vitline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Pre-trains Vision Transformers and shows what the pre-training bought."""


# ---------------------------------------------------------------- config


@config_app.command("show")
def config_show(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print a configuration with every default filled in.

    Example: vitline config show configs/demo.yaml seed=1
    """
    from pipeline.config_io import dump_config, load_config

    settings = load_config(config, overrides or [])
    typer.echo(
        json.dumps(settings.model_dump(mode="json"), indent=1) if as_json else dump_config(settings),
        nl=as_json,
    )


@config_app.command("diff")
def config_diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="configuration file, or directory of a run")],
    second: Annotated[Path, typer.Argument(metavar="B", help="the same, to compare with it")],
    as_json: Json = False,
) -> None:
    """Name the settings in which two configurations differ, and the stages that each makes run again.

    Example: vitline config diff runs/demo configs/demo.yaml
    """
    from dataclasses import asdict

    from rich.console import Console

    from launch.config_diff import diff_table, differences, open_config, stages_together

    one, two = open_config(first), open_config(second)
    found, together = differences(one, two), stages_together(one, two)
    if as_json:
        settings = [asdict(item) for item in found]
        typer.echo(json.dumps({"schema": 1, "settings": settings, "runs_again": together}, indent=1))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    if found:
        console.print(diff_table(found, (str(first), str(second))))
    console.print(f"runs again in all: {', '.join(together) or 'nothing'}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of a configuration: names, types, ranges, meanings.

    Example: vitline config schema > vitline.schema.json
    """
    from pipeline.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=1))


# ---------------------------------------------------------------- bench


@bench_app.command(
    "model",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_model(context: typer.Context) -> None:
    """Time our ViT against timm's and torchvision's, forward and backward; --help names the options.

    Example: vitline bench model --model vit_s16 --batch 32
    """
    from launch.bench.model import main as bench

    bench(context.args)


@bench_app.command(
    "data",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_data(context: typer.Context) -> None:
    """Time our reader of training images against those of others, side by side; --help names the options.

    Example: vitline bench data --photos tests/data/photos --sets large small
    """
    from launch.bench.data import main as bench

    bench(context.args)


@bench_app.command(
    "fanout",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_fanout(context: typer.Context) -> None:
    """Time the orchestration alone, or simulate a large cluster (--simulate); --help names the options.

    Example: vitline bench fanout --jobs 1000 --csv fanout.csv
    """
    from launch.bench.fanout import main as bench

    bench(context.args)


@bench_app.command(
    "checkpoint",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_checkpoint(context: typer.Context) -> None:
    """Time checkpoints: their cost to training, save and load against plain files; --help names the options.

    Example: vitline bench checkpoint --models vit_b16 --ranks 2 --work /where/checkpoints/go
    """
    from launch.bench.checkpoint import main as bench

    bench(context.args)


@bench_app.command(
    "train",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def bench_train(context: typer.Context) -> None:
    """Time our training loop beside loops of PyTorch alone, memory beside the plan; --help for options.

    Example: vitline bench train --gpu --photos tests/data/photos
    """
    from launch.bench.train import main as bench

    bench(context.args)


# In the order of `vitline --help`.
run_commands.register(app)
app.command("compare")(compare)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(model_app, name="model")
app.add_typer(bench_app, name="bench")
plan_commands.register(app)
launch_commands.register(app)
retrain_commands.register(app)
app.add_typer(schedule_app, name="schedule")

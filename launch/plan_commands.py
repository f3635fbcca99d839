"""The commands `vitline plan` and `vitline doctor`: their options; what they do is imported when they run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch.options import Config, Json, Overrides

# A file or a pipe has no width of its own; the tables need this much.
_WIDTH = 140


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("plan")(plan)
    app.command("doctor")(doctor)


def plan(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="machines; default: as configured")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=1, help="ranks on each, one a GPU; default: as configured")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="h100, h200, b200, a100, a100-40, l40s, rtx4090 or cpu")
    ] = None,
    memory_gib: Annotated[float | None, typer.Option(help="memory of one device", min=0.1)] = None,
    images_per_s: Annotated[
        float | None, typer.Option(help="speed over all ranks, if you know it", min=1e-3)
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(help="share of the device's peak to count with", min=1e-4, max=1)
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="run whose speed to count with; default: this one's own")
    ] = None,
    price: Annotated[float | None, typer.Option(help="of one device for an hour", min=0)] = None,
    train_samples: Annotated[
        int | None, typer.Option(help="images in the training set, if it is not prepared", min=1)
    ] = None,
    classes: Annotated[int | None, typer.Option(help="classes of it, if it is not prepared", min=1)] = None,
    as_json: Json = False,
) -> None:
    """Say what a run will take: memory, time, disk, exaFLOPs, price; starts nothing.

    Example: vitline plan configs/runs/vit_b16_i21k.yaml --nodes 8 --gpus-per-node 8 --device h100
    """
    from rich.console import Console

    from launch.plan import plan_config
    from launch.plan_answer import Given
    from launch.plan_show import plan_json, print_plan
    from pipeline.config_io import load_config

    given = Given(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        device=device,
        memory_gib=memory_gib,
        images_per_s=images_per_s,
        mfu=mfu,
        measured=measured,
        price=price,
        train_samples=train_samples,
        classes=classes,
    )
    answer = plan_config(load_config(config, overrides or []), given)
    if as_json:
        typer.echo(json.dumps(plan_json(answer), indent=1))
    else:
        print_plan(answer, Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH))


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="configuration file; with it, more is checked")
    ] = None,
    overrides: Overrides = None,
    address: Annotated[
        str | None, typer.Option(help="of a running Ray cluster; default: one is started here")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="leave out the rates of devices and network")
    ] = False,
    allow_open_ray: Annotated[
        bool, typer.Option("--allow-open-ray", help="a cluster without authentication is a warning only")
    ] = False,
    timeout_s: Annotated[float, typer.Option(min=1, help="for all checks together")] = 120,
    as_json: Json = False,
) -> None:
    """Check every node of a cluster before a run needs it; exit code 7 when one is not fit.

    Example: vitline doctor configs/demo.yaml --address 10.0.0.1:6379
    """
    from launch.doctor import run_doctor
    from launch.doctor_report import Asked, report_json
    from launch.doctor_show import print_report
    from pipeline.config_io import load_config

    settings = None if config is None else load_config(config, overrides or [])
    asked = Asked(quick=quick, allow_open_ray=allow_open_ray, timeout_s=timeout_s)
    report = run_doctor(settings, address, asked)
    if as_json:
        typer.echo(json.dumps(report_json(report), indent=1))
    else:
        print_report(report, width=None if sys.stdout.isatty() else _WIDTH)
    report.raise_if_unfit()

"""The commands `vitline schedule …`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Scheduler(StrEnum):
    """Who calls the tick."""

    cron = "cron"
    systemd = "systemd"
    airflow = "airflow"
    kubernetes = "kubernetes"


schedule_app = typer.Typer(no_args_is_help=True, help="Writes files that let a scheduler call retrain.")


@schedule_app.command("render")
def render(
    scheduler: Annotated[Scheduler, typer.Argument(help="who calls the tick")],
    config: Annotated[Path, typer.Argument(help="configuration, as configs/retrain/demo.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="settings, as retrain.timezone=Europe/Berlin")
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="kubernetes: image, volume and sizes of the pod")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="where the files go; default: print them")
    ] = None,
) -> None:
    """Write what a scheduler needs to call `vitline retrain`, and say when it will; installs nothing.

    Example: vitline schedule render systemd configs/retrain/demo.yaml --out units
    """
    import datetime
    import shutil
    import sys

    from launch.cluster_config import load_cluster
    from launch.schedule import RENDERERS, Tick
    from launch.schedule_times import next_times
    from pipeline.config_io import load_config
    from pipeline.errors import ConfigError
    from pipeline.rundir import write_atomic

    settings = load_config(config, overrides or [])
    if settings.retrain is None:
        raise ConfigError("no section retrain", "schedule and timezone", "see configs/retrain/demo.yaml")
    if overrides and any(not override.startswith("retrain.") for override in overrides):
        raise ConfigError(
            "settings of the run beside the file",
            "all of them in the file that the tick reads",
            "write them there",
        )
    schedule, zone = settings.retrain.schedule, settings.retrain.timezone
    times = next_times(schedule, zone, datetime.datetime.now(datetime.UTC), 5)
    if not times:
        raise ConfigError(
            f"retrain.schedule {schedule!r} never ticks", "days that some month has", "correct day and month"
        )
    command = shutil.which("vitline") or str(Path(sys.executable).with_name("vitline"))
    tick = Tick(
        name=settings.name,
        config=config.absolute(),
        directory=Path.cwd(),
        vitline=command,
        schedule=schedule,
        timezone=zone,
        cluster=load_cluster(cluster),
    )
    for name, text in RENDERERS[scheduler.value](tick).items():
        if out is None:
            typer.echo(f"# ---- {name}\n{text}")
        else:
            write_atomic(out / name, text.encode())
            typer.echo(str(out / name))
    for moment in times:
        typer.echo(f"next: {moment:%a %Y-%m-%d %H:%M %Z}", err=True)

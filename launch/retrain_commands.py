"""The commands `vitline retrain`, `promote` and `rollback`; nothing heavy is imported before one runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Json

Config = Annotated[
    Path, typer.Argument(help="configuration file with retrain:, as configs/retrain/demo.yaml")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="settings, as retrain.gate.margin_pp=2")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("retrain")(retrain)
    app.command("promote")(promote)
    app.command("rollback")(rollback)


def retrain(
    config: Config,
    overrides: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait", help="stay until the round has its verdict")] = False,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="a round whatever the data says; the reason is kept")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what a tick would do")] = False,
    history: Annotated[bool, typer.Option("--history", help="print every decision so far")] = False,
    why: Annotated[bool, typer.Option("--why", help="explain the last decision by its evidence")] = False,
    pause: Annotated[
        str | None, typer.Option(metavar="REASON", help="let no round begin; one that has begun goes on")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="let rounds begin again after --pause")] = False,
    as_json: Json = False,
) -> None:
    """One tick: train anew when new data has come, and promote the result if it is no worse.

    Example: vitline retrain configs/retrain/demo.yaml --wait

    A scheduler repeats it (`vitline schedule render`); a tick goes as far as it can without waiting.
    Exit codes: 0 started or promoted, 3 nothing to do, 5 failed, 6 not promoted, 8 another tick is at it.
    """
    from launch.retrain import dry_tick, print_history, run_tick
    from launch.retrain import pause as set_pause
    from pipeline.config_io import load_config
    from pipeline.errors import UserError

    settings = load_config(config, overrides or [])
    if sum((history, why, dry_run, pause is not None, resume, wait or force is not None)) > 1:
        raise UserError(
            "several of --history, --why, --dry-run, --pause, --resume and a tick",
            "one",
            "leave the others out",
        )
    if pause is not None or resume:
        set_pause(settings, pause)
    elif history or why:
        print_history(settings, as_json=as_json, last_only=why)
    elif dry_run:
        raise typer.Exit(dry_tick(settings, as_json=as_json))
    else:
        raise typer.Exit(run_tick(settings, force, wait=wait, as_json=as_json))


def promote(
    config: Config,
    overrides: Overrides = None,
    version: Annotated[str | None, typer.Option(help="in the registry; default: the challenger")] = None,
    override: Annotated[
        str | None, typer.Option(metavar="REASON", help="for one that did not pass; kept with the version")
    ] = None,
) -> None:
    """Make the challenger the champion, where retrain.gate.approve is manual.

    Example: vitline promote configs/retrain/demo.yaml
    """
    from launch.retrain import promote as by_hand
    from pipeline.config_io import load_config

    by_hand(load_config(config, overrides or []), version, override)


def rollback(
    config: Config,
    reason: Annotated[str, typer.Option(help="why; the version that is left is blocked with it")],
    overrides: Overrides = None,
    to: Annotated[str | None, typer.Option(metavar="VERSION", help="default: the champion before")] = None,
) -> None:
    """Put the champion back to the version before; takes seconds, trains nothing.

    Example: vitline rollback configs/retrain/demo.yaml --reason 'wrong labels in week 12'
    """
    from launch.retrain import rollback as by_hand
    from pipeline.config_io import load_config

    by_hand(load_config(config, overrides or []), to, reason)

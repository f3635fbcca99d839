"""The commands `vitline run` and `vitline status`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Annotated

import typer

from launch.launch_commands import Preflight
from launch.options import Config, Json, Overrides
from pipeline.errors import UserError


def register(app: typer.Typer) -> None:
    """Add both commands to the command line."""
    app.command("run")(run)
    app.command("status")(status)


def run(
    config: Config,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would run and why")] = False,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="begin with this stage")
    ] = None,
    last: Annotated[str | None, typer.Option("--until", metavar="STAGE", help="end with this stage")] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="this stage and no other")] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="do it again, with what follows; old results are kept"),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="of a running Ray cluster; default: one is started here")
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="as 3h50m: save and end with 75 then; the same command continues"),
    ] = None,
    preflight: Annotated[
        Preflight,
        typer.Option(help="checks of all nodes before a gang that needs several; full: devices, network too"),
    ] = Preflight.quick,
    as_json: Json = False,
) -> None:
    """Run a configuration from images to report; finished work is skipped.

    Example: vitline run configs/demo.yaml pretrain.duration='200 steps'
    """
    from launch.run import dry_run as plan_only
    from launch.run import run_config
    from launch.stop_after import span_s
    from pipeline.config_io import load_config
    from pipeline.graph import Selection

    settings = load_config(config, overrides or [])
    if address is not None:
        settings = settings.model_copy(
            update={"cluster": settings.cluster.model_copy(update={"address": address})}
        )
    if only is not None and (first is not None or last is not None):
        raise UserError("--only beside --from or --until", "one of them", "leave the others out")
    stop_after_s = None if stop_after is None else span_s(stop_after)
    selection = Selection(first=only or first, last=only or last, force=frozenset(force or ()))
    if dry_run:
        plan_only(settings, selection, as_json=as_json)
    else:
        run_config(
            settings,
            selection,
            as_json=as_json,
            on_stop=_stop_on_signals,
            stop_after_s=stop_after_s,
            preflight=preflight.value,
        )


def status(
    run_path: Annotated[
        str, typer.Argument(metavar="RUN", help="directory of a run, as runs/demo, or REMOTE/NAME")
    ],
    watch: Annotated[bool, typer.Option("--watch", help="draw it anew while the run has a driver")] = False,
    price: Annotated[float | None, typer.Option(help="of one device for an hour", min=0)] = None,
    as_json: Json = False,
) -> None:
    """Show the jobs of a run with state, time and result, what all of it took, and where MLflow has it.

    Example: vitline status runs/demo --watch
    """
    from launch.status import print_status

    print_status(run_path, as_json=as_json, watch=watch, price=price)


def _stop_on_signals(stop: threading.Event) -> None:
    """First signal: stop in order, with checkpoints. Second Ctrl-C: at once."""
    asked = False

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        # Not whether a stop goes on: one by the clock must not make the first signal the last.
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("stopping: running jobs save and end; Ctrl-C once more ends at once", file=sys.stderr)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, handler)

"""The command `vitline run`: plan, drive, mirror to MLflow, and say how it ended."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from launch.display import RunDisplay
from launch.preflight import Preflight
from launch.stop_after import stopping_after
from pipeline.config import RunConfig
from pipeline.driver import Driver, plan_run, run_dir_of, write_outcome
from pipeline.errors import VitlineError
from pipeline.executor import RayExecutor
from pipeline.graph import Planned, Selection, changes, listed, select
from pipeline.keeping import is_planned_by, keep, url_of, with_checkpoints
from pipeline.lease import Lease
from pipeline.remote_state import RemoteLease, RemoteState, look_at
from pipeline.rundir import RunDir
from pipeline.stages.catalog import STAGES
from pipeline.stages.checks import check_run

# How long the end of a run waits for MLflow; what is not sent by then is sent by the next command.
_MIRROR_CLOSE_S = 30.0


def dry_run(config: RunConfig, selection: Selection, *, as_json: bool) -> None:
    """Print what would run and why; changes nothing."""
    check_run(config)
    run = run_dir_of(config)
    with ExitStack() as stack:
        if (url := url_of(config)) is not None:
            run = RunDir(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            look_at(RemoteState(url), run.path, is_planned_by)
        planned = select(plan_run(config, run), selection, STAGES)
    if as_json:
        print(json.dumps([_as_json(item) for item in planned], indent=1))
        return
    table = Table(
        "job",
        "state",
        "why",
        "digest",
        title=f"{config.name}: {_count(planned)}",
        title_justify="left",
        box=box.SIMPLE,
    )
    for item in planned:
        table.add_row(item.job.name, item.state, item.reason, item.digest)
    Console().print(table)


def run_config(
    config: RunConfig,
    selection: Selection,
    *,
    as_json: bool,
    on_stop: Callable[[threading.Event], None],
    stop_after_s: float | None = None,
    preflight: Literal["full", "quick", "off"] = "quick",
) -> None:
    """Do all that is due and print the comparison.

    Args:
        config: checked settings.
        selection: which part of the plan to do.
        as_json: print the outcome as one JSON object.
        on_stop: called with the event that asks the driver to stop; installs the signal handlers.
        stop_after_s: from now, to stop by itself; None: when all is done.
        preflight: how much is looked at before a gang of several nodes starts.

    Raises:
        VitlineError: see pipeline/driver.py; RUN/result.json holds the outcome in any case.
    """
    began = time.monotonic()
    check_run(config)
    config, run = with_checkpoints(config), run_dir_of(config)
    with ExitStack() as stack:
        lease = _hold(config, run, stack)
        planned = select(plan_run(config, run), selection, STAGES)
        due = [item for item in planned if item.state == "due"]
        console = Console(stderr=True, highlight=False)
        console.print(f"{config.name}: {_count(planned)}")
        if found := changed_settings(config, run):
            console.print(
                f"{run.path} was written by another configuration: {listed(found)}; "
                "what that changes is done anew, results of the other stay",
                style="yellow",
                markup=False,
                soft_wrap=True,
            )
        if due:
            left_s = None if stop_after_s is None else stop_after_s - (time.monotonic() - began)
            look = None if preflight == "off" else Preflight(config, run, due, quick=preflight == "quick")
            _drive(config, run, lease, planned, on_stop, left_s, look)
        write_outcome(run, 0, None)
    _print_end(config, run, planned, as_json=as_json)


def changed_settings(config: RunConfig, run: RunDir) -> list[str]:
    """`setting old → new` against the last command on this directory; where it runs does not count."""
    try:
        before = yaml.safe_load(run.config.read_bytes())
    except (FileNotFoundError, yaml.YAMLError):
        return []
    if not isinstance(before, dict):
        return []
    aside = {"root", "remote", "cluster", "fanout", "tracking"}
    now = config.model_dump(mode="json", exclude=aside)
    return changes({key: value for key, value in before.items() if key not in aside}, now)


def _hold(config: RunConfig, run: RunDir, stack: ExitStack) -> Lease:
    """The run's lease, here and where its state is kept; the state is here and up to date then."""
    url = url_of(config)
    if url is None:
        return stack.enter_context(Lease(run.lease))
    state = RemoteState(url)
    lease = stack.enter_context(Lease(run.lease, RemoteLease(url)))

    def warn(message: str) -> None:
        Console(stderr=True, highlight=False).print(message, style="yellow", markup=False)

    stack.enter_context(keep(config, run, state, lease, warn))
    return lease


def _drive(
    config: RunConfig,
    run: RunDir,
    lease: Lease,
    planned: Sequence[Planned],
    on_stop: Callable[[threading.Event], None],
    left_s: float | None,
    preflight: Preflight | None,
) -> None:
    mirror = _start_mirror(config, run)
    stop = threading.Event()
    try:
        with RunDisplay(run, list(planned)) as display, stopping_after(left_s, stop):
            on_stop(stop)
            executor = RayExecutor(
                config, run, before_gang=None if preflight is None else preflight.before_gang
            )

            def connected() -> None:
                on_stop(stop)
                if preflight is not None:
                    preflight.when_connected(executor.nodes())

            Driver(config, run, lease, display, stop, connected, executor).drive(planned)
    except VitlineError as error:
        write_outcome(run, error.exit_code, str(error))
        raise
    finally:
        if mirror is not None and not mirror.close(_MIRROR_CLOSE_S):
            Console(stderr=True).print(
                "MLflow did not take everything; the next `vitline run` sends the rest", style="yellow"
            )


def _start_mirror(config: RunConfig, run: RunDir) -> Any:
    if not config.tracking.enabled:
        return None
    # MLflow takes seconds to import, and not every command tracks.
    from pipeline.tracking import Mirror

    mirror = Mirror(run, config.tracking, name=config.name)
    mirror.start()
    return mirror


def _print_end(config: RunConfig, run: RunDir, planned: Sequence[Planned], *, as_json: bool) -> None:
    # These bring in SciPy.
    from pipeline.report.tables import as_dict, terminal_table
    from pipeline.report.words import verdicts
    from pipeline.transfer.results import collect, compare

    cells = collect(run, [item.digest for item in planned])
    if not cells:  # a command for the first stages only
        print(f"jobs:    vitline status {run.path}")
        return
    comparison = compare(cells)
    if as_json:
        print(json.dumps(as_dict(comparison), indent=1))
        return
    # A file or a pipe has no width of its own; the table needs this much.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(terminal_table(comparison))
    for sentence in (*verdicts(comparison), *comparison.warnings):
        console.print(sentence, markup=False)
    uri = config.tracking.uri or f"sqlite:///{run.path.parent}/mlflow.db"
    print(f"report:  {run.report / 'report.html'}")
    if config.tracking.enabled:
        print(f"curves:  mlflow ui --backend-store-uri {uri}")
    print(f"jobs:    vitline status {run.path}")


def _count(planned: Sequence[Planned]) -> str:
    counts = Counter(item.state for item in planned)
    return f"{len(planned)} jobs, {counts['done']} done, {counts['due']} due"


def _as_json(item: Planned) -> dict[str, Any]:
    return {
        "name": item.job.name,
        "stage": item.job.stage,
        "digest": item.digest,
        "state": item.state,
        "reason": item.reason,
        "inputs": dict(item.inputs),
    }

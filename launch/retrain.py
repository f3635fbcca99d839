"""What `vitline retrain`, `promote` and `rollback` do: a scene from a configuration, and what they print."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launch.retrain_runner import LocalRunner
from pipeline.config import RunConfig
from pipeline.driver import run_dir_of
from pipeline.errors import Busy, UserError
from pipeline.lease import Lease
from pipeline.retrain.notify import notify
from pipeline.retrain.occasions import BESIDE
from pipeline.retrain.opening import Scene, settings_of, wanted
from pipeline.retrain.promotion import promote_by_hand, roll_back
from pipeline.retrain.rounds import tracking_uri
from pipeline.retrain.state import State
from pipeline.retrain.tick import EXIT_CODES, Answer, Ticker
from pipeline.rundir import read_json
from pipeline.stages.checks import check_run
from pipeline.tracking_registry import CHAMPION, Registry


def state_of(config: RunConfig) -> State:
    """Below the directory that a plain run of the configuration would use."""
    return State(Path.cwd() / run_dir_of(config).path / "retrain")


def scene_of(config: RunConfig) -> Scene:
    """Everything a tick works with; opens the registry."""
    directory = Path.cwd()
    name = settings_of(config).model or config.name
    registry = Registry(tracking_uri(config, directory), config.tracking.experiment, name)
    return Scene(config, state_of(config), registry, directory, time.time)


def run_tick(config: RunConfig, force: str | None, *, wait: bool, as_json: bool) -> int:
    """One tick, or with `wait` as many as the round takes; returns the exit code.

    Raises:
        VitlineError: see pipeline/retrain/tick.py.
    """
    check_run(config)
    scene = scene_of(config)
    ticker = Ticker(scene, LocalRunner(scene.directory))
    answer = ticker.tick(force)
    while wait and answer.decision in ("started", "running"):
        time.sleep(scene.settings.poll_s)
        try:
            answer = ticker.tick()
        except Busy:
            # Another tick looks after the round just now.
            continue
    _print(scene.state, answer, as_json=as_json)
    return EXIT_CODES[answer.decision]


def dry_tick(config: RunConfig, *, as_json: bool) -> int:
    """Say what a tick would do; changes nothing but the cache of shards."""
    scene = scene_of(config)
    current = scene.state.current()
    if current is not None:
        answer = Answer("running", f"{current.phase}: {current.reason}", current.run)
    else:
        _, fresh = wanted(scene, None)
        answer = Answer("due" if fresh.due else "skipped", fresh.reason)
    _print(scene.state, answer, as_json=as_json)
    return 0 if answer.decision == "due" else 3


def _print(state: State, answer: Answer, *, as_json: bool) -> None:
    gate = read_json(state.gate(answer.run)) if answer.run else None
    if as_json:
        body = {"schema": 1, "decision": answer.decision, "why": answer.why, "run": answer.run, "gate": gate}
        print(json.dumps(body, indent=1))
        return
    print(f"{answer.decision}: {answer.why}")
    if answer.run is None:
        return
    run = state.run_dir(answer.run)
    if gate is not None:
        print(f"evidence: {state.gate(answer.run)}")
    print(f"jobs:     vitline status {run.path}")
    if answer.decision in ("started", "running"):
        print(f"log:      tail -F {run.launch / 'retrain.log'}")


def print_history(config: RunConfig, *, as_json: bool, last_only: bool) -> None:
    """The ledger; with `last_only` the newest decision and its evidence, in words."""
    state = state_of(config)
    events = state.history()
    if not events:
        raise UserError(f"no tick yet in {state.path}", "a ledger", "run `vitline retrain` first")
    if last_only:
        decisions = [event for event in events if event["decision"] not in BESIDE]
        print(_explain(state, (decisions or events)[-1]))
        return
    for event in events:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        text = f"{stamp}  {event['decision']:<12}  {event.get('version') or '-':>3}  {event['why']}"
        print(json.dumps(event) if as_json else text)


def _explain(state: State, event: dict[str, Any]) -> str:
    gate = read_json(state.gate(event["run"])) if event.get("run") else None
    lines = [f"{event['decision']}: {event['why']}"]
    for item in gate["datasets"] if gate else ():
        if item["delta_pp"] is None:
            lines.append(f"{item['dataset']}: {item['challenger']:.4f} of {item['n']}; {item['why']}")
            continue
        low, high = item["interval_pp"]
        lines.append(
            f"{item['dataset']}: {item['champion']:.4f} → {item['challenger']:.4f}, "
            f"{item['delta_pp']:+.2f} pp (95 % interval {low:+.2f} to {high:+.2f}, n {item['n']}, "
            f"seeds {item['seeds']}, {item['test']} p {item['p']:.3g}, Holm {item['p_holm']:.3g}): "
            f"{item['verdict']}, {item['why']}"
        )
    if gate:
        lines += [f"guard: {name}: {fault or 'yes'}" for name, fault in gate["guards"].items()]
    return "\n".join(lines)


# ---------------------------------------------------------------- by hand


def pause(config: RunConfig, reason: str | None) -> None:
    """Let no round begin, or with None let them begin again."""
    scene = scene_of(config)
    with _alone(scene) as note:
        before = scene.state.paused()
        if reason is None and before is None:
            raise UserError("no pause", "a schedule that is paused", "nothing to do: rounds may begin")
        scene.state.pause(reason)
        said = f"no longer paused ({before})" if reason is None else f"paused: {reason}"
        note("resumed" if reason is None else "paused", None, said)
    print(f"{scene.registry.name}: {said}")


@contextmanager
def _alone(scene: Scene) -> Iterator[Callable[[str, str | None, str], None]]:
    """Under the lease, with a number of its own; gives what notes a decision in the ledger."""
    state = scene.state
    with Lease(state.lease):
        fence = state.next_fence()

        def note(decision: str, version: str | None, why: str) -> None:
            state.check_fence(fence)
            event = {"event": "by hand", "time": scene.clock(), "fence": fence}
            state.note({**event, "decision": decision, "version": version, "why": why})

        yield note


def promote(config: RunConfig, version: str | None, override: str | None) -> None:
    """Make the challenger, or another version, the champion."""
    scene = scene_of(config)
    with _alone(scene) as note:
        number, why = promote_by_hand(scene.registry, version, override)
        note("promoted", number, why)
    _tell(scene, "promoted", number, why)


def rollback(config: RunConfig, to: str | None, reason: str) -> None:
    """Put the champion back and block the version that is left."""
    scene = scene_of(config)
    with _alone(scene) as note:
        left, number = roll_back(scene.registry, to, reason)
        why = f"version {left} was taken back: {reason}"
        note("rolled_back", number, why)
    _tell(scene, "rolled_back", number, why)


def _tell(scene: Scene, occasion: str, number: str, why: str) -> None:
    model = scene.registry.name
    body = {"summary": f"{model}: {occasion} to version {number} ({why})", "model": model}
    notify(scene.settings.notify, occasion, {**body, "version": number, "why": why, "time": scene.clock()})
    print(f"{model}@{CHAMPION} is version {number}: {why}")
    serve = f"mlflow models predict -m models:/{model}@{CHAMPION} --env-manager local"
    print(f"serve:    MLFLOW_TRACKING_URI={scene.registry.uri} {serve}", file=sys.stderr)

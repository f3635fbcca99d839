"""Ticks that are killed wherever they have just written something, ticks that never came, a lost alias."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import EnvironmentUnfit
from pipeline.retrain.state import State
from pipeline.rundir import read_json
from pipeline.tracking_registry import CHALLENGER, CHAMPION, PREVIOUS, Registry
from tests.helpers.month import Month, drop

# Calls after which a tick is killed, in the order of a round: State.write leaves it due, submitted,
# evaluated, judged, ended, told; Registry.move sets challenger, previous, champion.
MOMENTS = [(State, "write", n) for n in range(1, 7)] + [(Registry, "move", n) for n in range(1, 4)]


def die_after(owner: type, name: str, count: int) -> None:
    """Have this process killed as soon as the method has returned `count` times."""
    real: Callable[..., Any] = getattr(owner, name)
    left = [count]

    def method(*given: Any, **named: Any) -> Any:
        value = real(*given, **named)
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return value

    setattr(owner, name, method)


def killed_tick(month: Month, moment: tuple[type, str, int]) -> None:
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # a pool has no threads after a fork, and would wait for them
        die_after(*moment)
        month.tick()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9, moment


@pytest.mark.slow
def test_a_tick_may_be_killed_after_every_step(tmp_path: Path) -> None:
    told = tmp_path / "told"
    hook = {"command": ["sh", "-c", f"echo >> {told}"], "on": ["promoted"]}
    month = Month(tmp_path, notify=[hook])
    drop(month.watch, 1)
    month.day = 2
    assert month.tick().decision == "promoted"
    for number, moment in enumerate(MOMENTS, 2):
        drop(month.watch, number)
        month.day = number + 1
        before = len(told.read_text())
        killed_tick(month, moment)
        month.tick()
        # One round, one version, the way back, and somebody was told; the ledger knows how it ended.
        rounds = month.state.rounds()
        assert [item.phase for item in rounds] == ["promoted"] * number, moment
        assert [version.number for version in month.registry.versions()] == _numbers(number)
        at = {alias: month.registry.at(alias) for alias in (CHALLENGER, CHAMPION, PREVIOUS)}
        assert [version and version.number for version in at.values()] == [
            str(number),
            str(number),
            str(number - 1),
        ], moment
        assert read_json(month.state.gate(rounds[-1].run)) is not None
        assert len(told.read_text()) > before, moment


def _numbers(count: int) -> list[str]:
    return [str(n + 1) for n in range(count)]


def test_any_number_of_missed_ticks_is_one(tmp_path: Path) -> None:
    month = Month(tmp_path)
    for day in (1, 4, 9):
        drop(month.watch, day)
    month.day = 20
    assert month.tick().decision == "promoted"
    (only,) = month.state.rounds()
    assert (len(only.shards), only.samples) == (3, 24)
    assert month.tick().decision == "skipped"


def test_an_alias_that_something_else_moves_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    month = Month(tmp_path)
    drop(month.watch, 1)
    month.day = 2
    client = month.registry._client
    real = client.set_registered_model_alias

    def slips(name: str, alias: str, version: str) -> None:
        real(name, alias, version)
        if alias == CHAMPION:
            client.delete_registered_model_alias(name, alias)

    monkeypatch.setattr(client, "set_registered_model_alias", slips)
    with pytest.raises(EnvironmentUnfit, match="champion was set to 1 and stands at None"):
        month.tick()
    assert month.state.history()[-1]["decision"] == "error"
    monkeypatch.setattr(client, "set_registered_model_alias", real)
    assert month.tick().decision == "promoted"
    assert month.champion() == "1"

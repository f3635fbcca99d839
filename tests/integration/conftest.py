"""Runs of the real command in temporary directories, and one finished run that tests share."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.canary import SECRETS
from tests.helpers.train_jobs import write_glyphs

ROOT = Path(__file__).resolve().parents[2]
SMALL = ROOT / "tests" / "integration" / "small.yaml"


class Command:
    """`vitline …` in a process group of its own."""

    def __init__(self, *arguments: str, home: Path) -> None:
        self.output = home / f"output-{time.time_ns()}.txt"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "launch", *arguments],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **SECRETS, "HOME": str(home), "NO_COLOR": "1"},
                start_new_session=True,
            )

    def wait(self, timeout_s: float = 300) -> int:
        return self.process.wait(timeout_s)

    @property
    def text(self) -> str:
        return self.output.read_text()

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a tiny prepared dataset, data/glyphs, for trainings without Ray."""
    run = tmp_path_factory.mktemp("run")
    write_glyphs(run / "data" / "glyphs")
    return run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def vitline(home: Path) -> Iterator[Callable[..., Command]]:
    """Starts commands; what still runs at the end is ended with all it started."""
    commands: list[Command] = []

    def start(*arguments: str) -> Command:
        commands.append(Command(*arguments, home=home))
        return commands[-1]

    yield start
    for command in commands:
        if command.process.poll() is None:
            for process in [*command.descendants(), psutil.Process(command.process.pid)]:
                process.kill()
            command.process.wait()


@pytest.fixture(scope="session")
def finished_run(vitline: Callable[..., Command], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small configuration, run to its end without a disturbance: RUN."""
    root = tmp_path_factory.mktemp("finished")
    command = vitline("run", str(SMALL), f"root={root}")
    assert command.wait() == 0, command.text
    return root / "small"

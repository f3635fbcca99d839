"""Hosts for tests; see tests/helpers/hosts.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.hosts import Hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., Hosts]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, iproute2 and util-linux, to make hosts of network namespaces")
    made: list[Hosts] = []

    def make(count: int, cpus: int = 1, started: int | None = None) -> Hosts:
        directory = tmp_path / "hosts"
        directory.mkdir()
        made.append(Hosts(count, directory, cpus, started))
        return made[-1].__enter__()

    yield make
    for cluster in made:
        cluster.__exit__()

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import pytest

from pipeline.data.cache import NodeCache
from pipeline.errors import UserError


def _fetch(data: bytes, calls: list[int]) -> Callable[[], bytes]:
    def fetch() -> bytes:
        calls.append(1)
        return data

    return fetch


def test_a_chunk_is_fetched_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(3):
        file = NodeCache(tmp_path, 1000).open("ab12", 5, _fetch(b"hello", calls))
        assert file.read(1, 3) == b"ell"
    assert len(calls) == 1
    assert (tmp_path / "ab/ab12.chunk").read_bytes() == b"hello"


def test_a_torn_chunk_is_fetched_again(tmp_path: Path) -> None:
    calls: list[int] = []
    cache = NodeCache(tmp_path, 1000)
    cache.open("ab12", 5, _fetch(b"hello", calls))
    (tmp_path / "ab/ab12.chunk").write_bytes(b"he")
    assert cache.open("ab12", 5, _fetch(b"hello", calls)).read(0, 5) == b"hello"
    assert len(calls) == 2


def test_threads_wait_for_one_download(tmp_path: Path) -> None:
    calls: list[int] = []

    def slow() -> bytes:
        calls.append(1)
        time.sleep(0.1)
        return b"hello"

    cache = NodeCache(tmp_path, 1000)
    threads = [threading.Thread(target=cache.open, args=("ab12", 5, slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def _open_in_process(directory: Path, counter: Synchronized[int]) -> None:
    def slow() -> bytes:
        with counter.get_lock():
            counter.value += 1
        time.sleep(0.2)
        return b"hello"

    assert NodeCache(directory, 1000).open("ab12", 5, slow).read(0, 5) == b"hello"


def test_processes_of_a_node_share_one_download(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    processes = [context.Process(target=_open_in_process, args=(tmp_path, counter)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert counter.value == 1


def _die_while_fetching(directory: Path) -> None:
    NodeCache(directory, 1000).open("ab12", 5, lambda: os._exit(9))  # type: ignore[arg-type,return-value]


def test_a_killed_process_leaves_nothing_to_wait_for(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_while_fetching, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert NodeCache(tmp_path, 1000).open("ab12", 5, lambda: b"hello").read(0, 5) == b"hello"


def test_the_longest_unused_go_first_and_open_ones_stay_readable(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 100)
    files = {}
    for number in range(5):
        name = f"{number:02x}ff"
        files[name] = cache.open(name, 30, lambda number=number: bytes([number]) * 30)
        os.utime(tmp_path / name[:2] / f"{name}.chunk", (number, number))
        if number == 1:
            os.utime(tmp_path / "00/00ff.chunk", (50, 50))  # used again
        assert sum(path.stat().st_size for path in tmp_path.glob("??/*.chunk")) <= 100
    left = sorted(path.stem for path in tmp_path.glob("??/*.chunk"))
    assert left == ["00ff", "03ff", "04ff"]
    assert files["01ff"].read(0, 2) == b"\x01\x01"


def test_a_chunk_larger_than_the_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a chunk of 5 bytes and a cache of 4"):
        NodeCache(tmp_path, 4).open("ab12", 5, lambda: b"hello")


def test_what_goes_wrong_while_fetching_is_raised_and_not_kept(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise OSError("gone")

    cache = NodeCache(tmp_path, 100)
    with pytest.raises(OSError, match="gone"):
        cache.open("ab12", 5, fail)
    assert cache.open("ab12", 5, lambda: b"hello").read(0, 5) == b"hello"

"""The driver knows its nodes without asking, and notices when nobody answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from pipeline.admission import Resources
from pipeline.errors import ClusterLost
from pipeline.nodewatch import NodeWatch

NODE: Resources = {"CPU": 1.0}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_lost(watch: NodeWatch) -> bool:
    try:
        watch.check()
    except ClusterLost:
        return True
    return False


def test_the_newest_answer_is_given_without_waiting_for_a_look() -> None:
    hang = threading.Event()
    looks = 0

    def look() -> list[Resources]:
        nonlocal looks
        looks += 1
        if looks > 1:
            hang.wait()
        return [NODE] * looks

    with NodeWatch(look, "it", patience_s=600, interval_s=0.01) as watch:
        assert watch.nodes() == [NODE]
        until(lambda: looks == 2)
        assert watch.nodes() == [NODE]
        hang.set()
        until(lambda: len(watch.nodes()) > 1)


def test_after_a_change_an_older_answer_is_not_given() -> None:
    nodes = [NODE, NODE]
    with NodeWatch(lambda: list(nodes), "it", patience_s=600, interval_s=600) as watch:
        assert len(watch.nodes()) == 2
        nodes.pop()
        watch.renew()
        assert len(watch.nodes()) == 1


@pytest.mark.parametrize("way", ["hangs", "raises"])
def test_a_head_that_is_silent_for_too_long_is_lost(way: str) -> None:
    gone, over = threading.Event(), threading.Event()

    def look() -> list[Resources]:
        if gone.is_set():
            if way == "raises":
                raise RuntimeError("no head")
            over.wait()
        return [NODE]

    with NodeWatch(look, "10.0.0.1:6379", patience_s=0.2, interval_s=0.01) as watch:
        watch.nodes()
        gone.set()
        until(lambda: is_lost(watch))
        with pytest.raises(ClusterLost, match=r"head of 10\.0\.0\.1:6379 has not answered") as caught:
            watch.check()
        assert caught.value.exit_code == 75
        watch.renew()
        with pytest.raises(ClusterLost):
            watch.nodes()
        over.set()


def test_a_head_that_comes_back_in_time_is_not_lost() -> None:
    failures = iter([True, True, False])

    def look() -> list[Resources]:
        if next(failures, False):
            raise RuntimeError("not yet")
        return [NODE]

    with NodeWatch(look, "it", patience_s=600, interval_s=0.01) as watch:
        watch.renew()
        assert watch.nodes() == [NODE]

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import OrderSettings
from pipeline.data.order import Chunks, Order, part
from pipeline.errors import ConfigError

shards = st.lists(st.integers(0, 25), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)
constants = st.tuples(st.integers(1, 12), st.integers(1, 40), st.none() | st.integers(1, 30))


def _order(sizes: list[int], chunk: int, lanes: int, window: int | None, seed: int = 0) -> Order:
    chunks = Chunks(np.array(sizes, dtype=np.int64), chunk)
    return Order(chunks, OrderSettings(lanes=lanes, window=window), seed)


@settings(max_examples=150, deadline=None)
@given(shards, constants, st.integers(0, 2**31), st.integers(0, 5))
def test_every_epoch_holds_each_sample_once(
    sizes: list[int], given_constants: tuple[int, int, int | None], seed: int, epoch: int
) -> None:
    chunk, lanes, window = given_constants
    order = _order(sizes, chunk, lanes, window, seed)
    positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples, dtype=np.int64)
    assert np.array_equal(np.sort(order.indices(positions)), np.arange(order.samples))


@settings(max_examples=100, deadline=None)
@given(shards, constants, st.integers(0, 100), st.integers(0, 20))
def test_a_batch_is_the_same_for_every_number_of_ranks(
    sizes: list[int], given_constants: tuple[int, int, int | None], seed: int, step: int
) -> None:
    """Batch 24 meets datasets of 1 to 300 samples: within an epoch, over its end, many epochs at once."""
    order = _order(sizes, *given_constants, seed)
    whole = order.batch_indices(step, 24)
    plain = order.indices(np.arange(step * 24, (step + 1) * 24, dtype=np.int64))
    assert np.array_equal(np.sort(whole), np.sort(plain))
    for world in (1, 2, 3, 4, 6, 8):
        shared = [order.indices(part(order.batch_positions(step, 24), rank, world)) for rank in range(world)]
        assert np.array_equal(np.concatenate(shared), whole)


def test_epochs_follow_without_a_gap_and_differ() -> None:
    order = _order([40, 3, 60], chunk=8, lanes=4, window=16)
    log = np.concatenate([order.batch_indices(step, 10) for step in range(103)])
    counts = np.bincount(log, minlength=103)
    assert counts.min() == counts.max() == 10
    first, second = (order.indices(np.arange(e * 103, (e + 1) * 103, dtype=np.int64)) for e in (0, 1))
    assert (first != second).mean() > 0.9


def test_another_seed_is_another_order() -> None:
    orders = [_order([500], 10, 4, None, seed).indices(np.arange(500, dtype=np.int64)) for seed in (0, 1)]
    assert (orders[0] != orders[1]).mean() > 0.9


def test_a_lane_reads_one_window_of_chunks_at_a_time() -> None:
    """What makes ranged reads possible: within a window's places only its own chunks occur."""
    order = _order([100] * 20, chunk=10, lanes=4, window=50)
    for lane in range(4):
        places = np.arange(500, dtype=np.int64)
        chunk = order.indices(places * 4 + lane) // 10
        for window in range(10):
            assert len(np.unique(chunk[window * 50 : (window + 1) * 50])) == 5


def test_each_chunk_is_read_once_an_epoch_but_for_cuts() -> None:
    order = _order([37] * 9, chunk=8, lanes=4, window=16)
    visits = 0
    for lane in range(4):
        length = len(np.arange(lane, 333, 4))
        index = order.indices(np.arange(length, dtype=np.int64) * 4 + lane)
        chunk = (index // 37) * 5 + index % 37 // 8
        visits += sum(len(np.unique(chunk[start : start + 16])) for start in range(0, length, 16))
    windows = sum(-(-len(np.arange(lane, 333, 4)) // 16) for lane in range(4))
    assert 45 <= visits <= 45 + windows  # a window's cut splits one chunk at most


def test_the_next_window_is_announced_once() -> None:
    order = _order([100] * 4, chunk=10, lanes=4, window=30)
    announced = np.concatenate([order.next_window(order.batch_positions(step, 20)) for step in range(20)])
    first = order.indices(np.arange(4 * 30, dtype=np.int64))
    assert np.array_equal(np.sort(np.concatenate([announced, first])), np.arange(400))


def test_mixing_of_sorted_shards_is_as_predicted() -> None:
    """Variance/mean of the classes in a batch is at most about 1 + batch ÷ (lanes · window ÷ chunk)."""
    classes, each, batch = 100, 640, 512
    order = _order([each] * classes, chunk=40, lanes=16, window=160)
    ratios = []
    for step in range(0, 120, 3):
        counts = np.bincount(order.batch_indices(step, batch) // each, minlength=classes)
        ratios.append(counts.var() / counts.mean())
    assert np.mean(ratios) < 1.15 * (1 + batch / (16 * 160 / 40))


def test_lanes_are_at_most_the_samples() -> None:
    assert _order([3], 5, 64, None).lanes == 3


def test_the_order_stays_what_it_was() -> None:
    """Written down once: if this fails, `VERSION` must change, for every seed means something else now."""
    order = _order([20, 13], chunk=4, lanes=3, window=8, seed=7)
    assert order.batch_indices(0, 12).tolist() == [5, 7, 30, 28, 24, 25, 26, 17, 0, 11, 13, 10]
    assert order.batch_indices(5, 12).tolist() == [32, 24, 3, 2, 15, 14, 14, 13, 19, 5, 27, 2]


def test_a_batch_that_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="a batch of 10 on 4 ranks") as caught:
        part(np.arange(10, dtype=np.int64), 0, 4)
    assert "8 or 12" in caught.value.do
    with pytest.raises(ConfigError) as caught:
        part(np.arange(2, dtype=np.int64), 0, 4)
    assert "set batch to 4," in caught.value.do


def test_a_billion_samples_cost_little() -> None:
    """100,000 shards of 10,000 samples in chunks of 150; measured in a process of its own."""
    code = """
        import numpy as np, resource, time
        from pipeline.config import OrderSettings
        from pipeline.data.order import Chunks, Order
        def peak() -> float:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        before = peak()
        start = time.process_time()
        order = Order(Chunks(np.full(100_000, 10_000, dtype=np.int64), 150), OrderSettings(lanes=256), 0)
        order.batch_indices(200_000, 4096)
        print(time.process_time() - start, peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    seconds, mib = (float(number) for number in run.stdout.split())
    assert seconds < 2
    assert mib < 200

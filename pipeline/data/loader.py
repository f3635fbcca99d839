"""Batches for training and for evaluation, a few ahead of whoever asks.

A training batch is a function of (data, seed, batch size, step): see order.py for its samples and
augment.py for its pixels. Evaluation takes the samples in their own order, each once over all ranks.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np

from pipeline.config import AugmentSettings, OrderSettings
from pipeline.data.assemble import PADDING, Assembler, Bad, Batch, Pending
from pipeline.data.augment import EvaluationPixels, TrainPixels, draw
from pipeline.data.mix import draw_pairs
from pipeline.data.mixture import AnyView
from pipeline.data.order import part
from pipeline.data.skips import Skips
from pipeline.errors import ConfigError, DataError

NO_SKIPS = Skips()
_AHEAD = 3  # batches in the making: one is being waited for, the others cover uneven images


class _Loader:
    """What both loaders share: batches in the making, waiting, closing."""

    def __init__(self, view: AnyView, size: int, threads: int, first_step: int, steps: int) -> None:
        self.view = view
        self.steps = steps
        self.wait_s = 0.0
        self.quarantine: list[Bad] = []
        self._assembler = Assembler(view, size, threads)
        self._pending: deque[Pending] = deque()
        self._next_step = first_step

    def _start(self, step: int) -> Pending:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) < _AHEAD and self._next_step < self.steps:
            self._pending.append(self._start(self._next_step))
            self._next_step += 1
        if not self._pending:
            raise StopIteration
        start = time.perf_counter()
        batch, bad = self._pending.popleft().finish()
        self.wait_s += time.perf_counter() - start
        known = {sample.id for sample in self.quarantine}
        self.quarantine += [sample for sample in bad if sample.id not in known]
        return batch

    def close(self) -> None:
        """End the threads. Safe at any time, also after an error and twice."""
        self._assembler.close()
        self.view.close()
        self._pending.clear()
        self._next_step = self.steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


class TrainLoader(_Loader):
    """This rank's part of the batches of steps first_step … steps-1, counted from 0; `skips` says which
    batches are left out.

    `wait_s`: seconds spent waiting for data. `quarantine`: samples that could not be decoded; they have
    weight 0, and later positions do not shift. `fresh`: those of them that other ranks do not know of yet:
    ranks exchange them and give what all have found to `take_over`, which judges the budget.
    """

    def __init__(
        self,
        view: AnyView,
        *,
        batch: int,
        image_size: int,
        augment: AugmentSettings,
        order: OrderSettings,
        seed: int,
        threads: int,
        bad_samples: float,
        rank: int,
        world: int,
        steps: int,
        first_step: int = 0,
        skips: Skips = NO_SKIPS,
    ) -> None:
        part(np.empty(batch, dtype=np.int64), rank, world)
        super().__init__(view, image_size, threads, first_step, steps)
        self.batch = batch
        self._first_step = first_step
        self._skips = skips
        self._size = image_size
        self._augment = augment
        self._order = view.order(order, seed)
        self._seed = seed
        self._rank, self._world = rank, world
        self._allowed = max(1, int(bad_samples * view.samples))
        self.fresh: list[Bad] = []

    def _start(self, step: int) -> Pending:
        batch = self._order.batch_positions(self._skips.batch(step), self.batch)
        positions = part(batch, self._rank, self._world)
        ids = self.view.sample_id(self._order.indices(positions))
        epochs = self._order.epochs(positions)
        draws = draw(self._augment, self._seed, epochs, ids)
        pairs = draw_pairs(self._augment, self._seed, epochs, ids, self._size)
        pending = self._assembler.start(
            step, ids, TrainPixels(self._augment, self._size, draws), pairs=pairs, soft=self.view.multi_label
        )
        ahead = self._order.next_window(positions)
        if step == self._first_step:
            ahead = np.concatenate([self._order.this_window(positions), ahead])
        if len(ahead):
            self.view.announce(self.view.sample_id(ahead))
        return pending

    def __next__(self) -> Batch:
        before = len(self.quarantine)
        batch = super().__next__()
        self.fresh += self.quarantine[before:]
        return batch

    def take_over(self, found: Iterable[Bad]) -> list[Bad]:
        """Add what all ranks found, this one's own too, to the quarantine; returns it without what was known
        before. The same on all ranks, in order of ids.

        Raises:
            DataError: more samples than `bad_samples` allows.
        """
        own = {sample.id for sample in self.fresh}
        known = {sample.id: sample for sample in self.quarantine if sample.id not in own}
        new = {sample.id: sample for sample in found if sample.id not in known}
        self.quarantine = [sample for _, sample in sorted((known | new).items())]
        self.fresh = []
        if len(self.quarantine) > self._allowed:
            listed = "; ".join(f"{bad.key}: {bad.reason}" for bad in self.quarantine[:5])
            raise DataError(
                f"{len(self.quarantine)} samples cannot be decoded ({listed})",
                f"at most {self._allowed} of {self.view.samples}",
                "check the dataset, or raise `bad_samples`",
            )
        return [sample for _, sample in sorted(new.items())]

    def state(self, step: int) -> dict[str, Any]:
        """The five values that say where training is after `step` steps, and the batches left out."""
        position = (self._skips.batch(step - 1) + 1) * self.batch if step else 0
        before = [list(window) for window in self._skips.windows if window[0] * self.batch < position]
        return {
            "fingerprint": self.view.fingerprint,
            "seed": self._seed,
            "batch": self.batch,
            "position": position,
            "order": self._order.constants(),
            **({"skipped": before} if before else {}),
        }

    def check_state(self, state: dict[str, Any], *, accept_new_data: bool = False) -> None:
        """Compare a saved state with this loader, which must begin where it ended.

        Raises:
            ConfigError: a value differs; both are shown. `accept_new_data` allows another fingerprint.
        """
        here = self.state(self._first_step)
        for name, value in here.items():
            if state.get(name) != value and not (name == "fingerprint" and accept_new_data):
                raise ConfigError(
                    f"{name} {value!r} of the data now, {state.get(name)!r} in the checkpoint",
                    "the data, seed, batch and order with which the run began",
                    "restore the old setting or data, or start a new run",
                )


class EvalLoader(_Loader):
    """Every sample of the view once over all ranks, in the view's order.

    A rank gets ceil(batch / world) rows at a time, all ranks the same number of batches; rows that are
    left over have weight 0 and id -1. Of several labels of a sample the first is given. Samples that
    cannot be decoded have weight 0, and are in `quarantine`: whoever counts must compare with
    `view.samples`.
    """

    def __init__(
        self,
        view: AnyView,
        *,
        batch: int,
        image_size: int,
        augment: AugmentSettings,
        threads: int,
        rank: int,
        world: int,
    ) -> None:
        self._rows = -(-batch // world)
        self._rank, self._world = rank, world
        self._pixels = EvaluationPixels(augment, image_size)
        super().__init__(view, image_size, threads, 0, -(-view.samples // (self._rows * world)))

    def _start(self, step: int) -> Pending:
        first = (step * self._world + self._rank) * self._rows
        index = np.arange(first, first + self._rows, dtype=np.int64)
        ids = np.full(self._rows, PADDING, dtype=np.int64)
        inside = index < self.view.samples
        ids[inside] = self.view.sample_id(index[inside])
        return self._assembler.start(step, ids, self._pixels)

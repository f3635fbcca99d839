"""PyTorch's profiler on chosen steps, and which share of a step goes to communication.

    profiles/step-000000012-rank-00000.json.gz     a trace; open it in chrome://tracing or ui.perfetto.dev

The share of communication is taken from the same profiler, on rank 0, of one step in many:

    GPU         time in which an NCCL kernel runs and no other kernel, ÷ time of the step
    processor   time in which a collective of gloo is under way, ÷ time of the step

Both hold the wait for ranks that come later. On a GPU what runs beside other kernels costs nothing and is not
counted; on a processor the engine computes nothing while a collective is under way. A step goes from asking
for its batch until its update is made. Where the profiler sees no kernel of a GPU, nothing is said. One rank
has nobody to talk to: its share is 0, and nothing is profiled for that.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline.train.world import World

Spans = list[tuple[int, int]]  # begin and end, ns


class Profiler:
    """Looks into steps of one rank; `begin` and `end` are called around each step."""

    def __init__(
        self,
        steps: Iterable[int],
        every: int | None,
        world: World,
        file_of: Callable[[int], Path],
        report: Callable[[Mapping[str, Any]], None],
    ) -> None:
        """
        Args:
            steps: that are traced.
            every: of one step in so many rank 0 measures communication; None: never.
            file_of: where the trace of a step goes.
            report: told about each trace.
        """
        self._steps = frozenset(steps)
        self._every = every if world.rank == 0 and world.size > 1 else None
        self._alone = every is not None and world.size == 1
        self._device = world.device
        self._file_of = file_of
        self._report = report
        self._running: profile | None = None
        self._began = 0.0
        self._share: float | None = None

    def begin(self, step: int) -> None:
        """Step number `step` begins."""
        if self._running is not None:  # the step before ended by an error, and is taken again
            self._running.stop()
            self._running = None
        if step not in self._steps and not self._measures(step):
            return
        # It would say on stderr that there is no GPU.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        cuda = [ProfilerActivity.CUDA] if self._device.type == "cuda" else []
        self._running = profile(activities=[ProfilerActivity.CPU, *cuda])
        self._running.start()
        self._began = time.perf_counter()

    def end(self, step: int) -> float:
        """Step number `step` is done; seconds that went to the profiler since then."""
        if self._running is None:
            return 0.0
        running, self._running = self._running, None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        ended = time.perf_counter()
        running.stop()
        if self._measures(step):
            self._share = communication_share(_events(running), ended - self._began)
        if step in self._steps:
            path = self._file_of(step)
            write_trace(running, path)
            self._report({"event": "profile", "step": step, "file": path.name})
        return time.perf_counter() - ended

    def figures(self) -> dict[str, float]:
        """What was measured since the last call, for the progress report."""
        if self._alone:
            return {"communication": 0.0}
        share, self._share = self._share, None
        return {} if share is None else {"communication": share}

    def _measures(self, step: int) -> bool:
        return self._every is not None and step % self._every == 0


def write_trace(running: profile, path: Path) -> None:
    """Put the trace into `path` (.json.gz) by rename, so that what is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    running.export_chrome_trace(str(beside))
    beside.replace(path)


def communication_share(events: Iterable[tuple[str, bool, int, int]], step_s: float) -> float | None:
    """Share of a step; see the head of this file.

    Args:
        events: name, whether it ran on a GPU, begin and end in ns.
        step_s: the whole step.
    """
    collectives: Spans = []
    gloo: Spans = []
    kernels: Spans = []
    for name, on_gpu, begin, end in events:
        if on_gpu:
            (collectives if "nccl" in name.lower() else kernels).append((begin, end))
        elif name.startswith("gloo:"):
            gloo.append((begin, end))
    if not collectives and not kernels:
        return min(1.0, covered(gloo) / 1e9 / step_s) if gloo else None
    alone = covered(collectives + kernels) - covered(kernels)
    return min(1.0, alone / 1e9 / step_s)


def covered(spans: Spans) -> int:
    """Length of the union of `spans`, ns."""
    total, until = 0, 0
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, until))
        until = max(until, end)
    return total


def _events(running: profile) -> list[tuple[str, bool, int, int]]:
    """As the profiler recorded them: making PyTorch's own list of events takes seconds."""
    results = running.profiler.kineto_results if running.profiler is not None else None
    if results is None:
        return []
    return [
        (e.name(), e.device_type().name == "CUDA", e.start_ns(), e.start_ns() + e.duration_ns())
        for e in results.events()
    ]

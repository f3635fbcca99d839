"""Training jobs on a tiny dataset, as the orchestrator would write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from launch.bench.ranks import write_train_job
from pipeline.config import GlyphsSource, WriteSettings
from pipeline.data.write import prepare

__all__ = ["stop_after", "write_glyphs", "write_train_job"]


def write_glyphs(directory: Path, image_size: int = 16) -> None:
    """Six classes of drawings: 60 samples in train, 18 in test."""
    source = GlyphsSource(
        source="glyphs",
        classes=6,
        train_per_class=10,
        test_per_class=3,
        image_size=image_size,
        write=WriteSettings(shard_samples=25),
    )
    prepare(source, directory)


def stop_after(steps: int) -> Callable[[], bool]:
    """Asks an attempt to stop after so many steps: it is polled before the first one and in each."""
    polls = iter(range(10**9))
    return lambda: next(polls) >= steps

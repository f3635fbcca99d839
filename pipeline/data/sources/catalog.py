"""Settings → source: the one place where a source is chosen."""

from __future__ import annotations

from importlib import import_module

from pipeline.config import DatasetSettings
from pipeline.data.sources.source import Source

# Each NAME has a module NAME here with a function `open_NAME`. Only the one that is asked for is imported:
# torchvision and scikit-learn take two seconds of a core each, in every process that writes a dataset.
SOURCES = ("glyphs", "sprites", "digits", "folder", "huggingface", "parquet", "torchvision")


def open_source(settings: DatasetSettings) -> Source:
    """The source that `settings.source` names."""
    name = settings.source.partition(":")[0]
    assert name in SOURCES, f"settings of a source {name} that has no module"
    source: Source = getattr(import_module(f"pipeline.data.sources.{name}"), f"open_{name}")(settings)
    return source

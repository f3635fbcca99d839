"""Settings → source: the one place where a source is chosen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.config import DatasetSettings
from pipeline.data.sources.digits import open_digits
from pipeline.data.sources.folder import open_folder
from pipeline.data.sources.glyphs import open_glyphs
from pipeline.data.sources.huggingface import open_huggingface
from pipeline.data.sources.parquet import open_parquet
from pipeline.data.sources.source import Source
from pipeline.data.sources.sprites import open_sprites
from pipeline.data.sources.torchvision import open_torchvision

SOURCES: dict[str, Callable[[Any], Source]] = {
    "glyphs": open_glyphs,
    "sprites": open_sprites,
    "digits": open_digits,
    "folder": open_folder,
    "huggingface": open_huggingface,
    "parquet": open_parquet,
    "torchvision": open_torchvision,
}


def open_source(settings: DatasetSettings) -> Source:
    """The source that `settings.source` names."""
    return SOURCES[settings.source.partition(":")[0]](settings)

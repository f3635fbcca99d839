"""The network that settings describe."""

from __future__ import annotations

from model.config import ModelConfig
from model.names import model_config
from pipeline.config import ModelSettings


def network_of(
    settings: ModelSettings, image_size: int, num_classes: int, *, representation: bool | None = None
) -> ModelConfig:
    """Its configuration; `representation` in place of what the settings say.

    Raises ValueError for a model that the zoo does not have, or that does not fit the resolution.
    """
    return model_config(
        settings.name,
        num_classes=num_classes,
        image_size=image_size,
        representation=settings.representation if representation is None else representation,
        **settings.options,
    )

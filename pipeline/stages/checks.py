"""What can be found wrong with a configuration before anything starts."""

from __future__ import annotations

from model.zoo import model_config
from pipeline.config import ModelSettings, RunConfig
from pipeline.errors import ConfigError
from pipeline.stages import pretrain


def check_run(config: RunConfig) -> None:
    """Refuse what would fail later, after the data was prepared and the GPUs waited for.

    Raises:
        ConfigError: a model that does not exist or does not fit the resolution, a batch that its ranks
            cannot share, more ranks than the engine can join.
    """
    settings, gang = config.pretrain, config.pretrain.gang
    pretrain.gang_sizes(settings)
    if gang.workers > 1 and settings.engine.kind == "plain":
        raise ConfigError(
            f"pretrain.engine.kind is plain with {gang.workers} workers",
            "one worker: the plain engine has no way to share a step",
            "set pretrain.engine.kind=zero",
        )
    _check_model(settings.model, settings.image_size, "pretrain.image_size")
    _check_model(settings.model, config.transfer.protocol.image_size, "transfer.protocol.image_size")


def _check_model(settings: ModelSettings, image_size: int, place: str) -> None:
    try:
        # The number of classes plays no part in whether a configuration is possible.
        model_config(
            settings.name,
            num_classes=1000,
            image_size=image_size,
            representation=settings.representation,
            **settings.options,
        )
    except ValueError as error:
        raise ConfigError(
            f"pretrain.model {settings.name} with {place}={image_size}: {error}",
            "a model of the zoo that fits the resolution",
            "correct pretrain.model or the resolution",
        ) from None

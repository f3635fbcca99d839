"""What can be found wrong with a configuration before anything starts."""

from __future__ import annotations

from pipeline.config import ModelSettings, PretrainSettings, RunConfig
from pipeline.errors import ConfigError
from pipeline.stages import pretrain
from pipeline.train.network import network_of


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
    if settings.objective == "masked_patches":
        _check_masked(settings)
    protocol = config.transfer.protocol
    _check_model(settings.model, protocol.image_size, "transfer.protocol.image_size")
    for name, own in getattr(protocol, "per_dataset", {}).items():
        if own.image_size is not None:
            _check_model(settings.model, own.image_size, f"transfer.protocol.per_dataset.{name}.image_size")


def _check_masked(settings: PretrainSettings) -> None:
    # Brings in PyTorch, which the driver of any other run can do without.
    import torch

    from pipeline.train.objective import masked_model

    model = settings.model
    config = network_of(model, settings.image_size, 1, representation=False)
    try:
        with torch.device("meta"):
            masked_model(config, settings.masked_patches)
    except ValueError as error:
        raise ConfigError(
            f"pretrain.model {model.name} with objective masked_patches: {error}",
            "a ViT, or a hybrid, whose patches can be hidden",
            "correct pretrain.model or pretrain.masked_patches",
        ) from None


def _check_model(settings: ModelSettings, image_size: int, place: str) -> None:
    try:
        # The number of classes plays no part in whether a configuration is possible.
        network_of(settings, image_size, 1000)
    except ValueError as error:
        raise ConfigError(
            f"pretrain.model {settings.name} with {place}={image_size}: {error}",
            "a model of the zoo that fits the resolution",
            "correct pretrain.model or the resolution",
        ) from None

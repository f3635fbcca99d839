"""Names and configurations to models; the names themselves are model/names.py's, and offered here too."""

from typing import Any

import torch

from model.config import ModelConfig, ViTConfig
from model.interface import ImageModel
from model.names import HYBRIDS, list_models, model_config, named_fields
from model.resnet import BiT
from model.vit import ViT

__all__ = ["HYBRIDS", "build", "create_model", "list_models", "model_config", "named_fields"]


def create_model(
    name: str,
    *,
    num_classes: int,
    image_size: int | tuple[int, int] = 224,
    representation: bool = False,
    generator: torch.Generator | None = None,
    **options: Any,
) -> ImageModel:
    """A freshly initialised model; numbers come from `generator`, or from torch's global one.

    `image_size` is in pixels, one side or (height, width). `representation` adds the hidden tanh layer of
    pre-training. `options` are fields of `ViTConfig` or `BiTConfig`. Raises ValueError for unknown names,
    naming the nearest.
    """
    config = model_config(
        name, num_classes=num_classes, image_size=image_size, representation=representation, **options
    )
    return build(config, generator)


def build(
    config: ModelConfig, generator: torch.Generator | None = None, *, initialise: bool = True
) -> ImageModel:
    """The model of a configuration, with initial weights.

    Works under `torch.device("meta")`, where there is nothing to initialise. An engine that splits parameters
    while the model is built passes `initialise=False` and calls `init_weights` with its own `gather`
    afterwards.
    """
    model: ImageModel = ViT(config) if isinstance(config, ViTConfig) else BiT(config)
    if initialise:
        model.init_weights(generator)
    return model

"""The models: Vision Transformers, their hybrids with a ResNet stem, and BiT ResNets.

In go a name and a few options, out comes a `torch.nn.Module` that maps normalised images to logits.
Everything here is plain PyTorch: no file but under `weights/`, no environment variable, no scheduler, no
tracker.
"""

from typing import TYPE_CHECKING

from model.config import ModelConfig
from model.names import list_models

if TYPE_CHECKING:
    from model.zoo import create_model

__all__ = ["ModelConfig", "create_model", "list_models"]


def __getattr__(name: str) -> object:
    """`create_model` when it is asked for: who only reads configurations needs no PyTorch."""
    if name == "create_model":
        from model.zoo import create_model

        return create_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

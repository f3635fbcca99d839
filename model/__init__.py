"""The models: Vision Transformers, their hybrids with a ResNet stem, and BiT ResNets.

In go a name and a few options, out comes a `torch.nn.Module` that maps normalised images to logits.
Everything here is plain PyTorch: no file but under `weights/`, no environment variable, no scheduler, no
tracker.
"""

from model.config import ModelConfig
from model.zoo import create_model, list_models

__all__ = ["ModelConfig", "create_model", "list_models"]

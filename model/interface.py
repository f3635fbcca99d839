"""What every model of the zoo offers, so that nobody needs to know which one they hold.

`forward` maps images to logits and `features` to what the head reads; `blocks` lists the parts that are
compiled and recomputed one by one; `head` is the last linear layer; `config` is the frozen description the
model was built from. A leaf class gives `features`; nothing else is overridden.

Axes: B batch, C channels (3), H and W pixels, D features, K classes.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import ModelConfig
from model.initialise import init_parameters
from model.positions import Positions

Gather = Callable[[nn.Parameter], AbstractContextManager[Any]]


class ImageModel(nn.Module):
    """Images in, logits out."""

    config: ModelConfig
    blocks: nn.ModuleList
    head: nn.Linear
    activation_checkpointing: bool = False

    @abstractmethod
    def features(self, x_BCHW: Tensor) -> Tensor:
        """What the head reads, (B, D), for images (B, 3, H, W) normalised to [-1, 1]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K) for images (B, 3, H, W) normalised to [-1, 1]; ValueError for another shape."""
        logits_BK: Tensor = self.head(self.features(x_BCHW))
        return logits_BK

    def init_weights(self, generator: torch.Generator | None = None, gather: Gather | None = None) -> None:
        """Overwrite every parameter (model/initialise.py) and prove that none was forgotten.

        Numbers are drawn in float32 on the generator's device (the CPU if None, from the global state), one
        parameter after the other, so they depend on the seed alone: not on device, dtype or number of ranks.
        `gather` makes one whole parameter writable inside its context; an engine that splits parameters over
        ranks passes its own.
        """
        init_parameters(self, self.config, generator, gather)
        for module in self.modules():
            if isinstance(module, Positions):
                module.fill_fixed()

    def set_activation_checkpointing(self, on: bool) -> None:
        """Recompute each block in the backward pass instead of keeping its activations; same results."""
        self.activation_checkpointing = on

    def run_block(self, block: nn.Module, *inputs: Tensor | bool | None) -> Tensor:
        """One block, recomputed in the backward pass where that is asked for and there is a backward pass."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        else:
            output = block(*inputs)
        return output


def check_images(x_BCHW: Tensor, size: tuple[int, int] | None) -> None:
    """Refuse with a ValueError what is not a batch of RGB images, of `size` (height, width) if given."""
    if x_BCHW.ndim == 4 and x_BCHW.shape[1] == 3 and size in (None, tuple(x_BCHW.shape[2:])):
        return
    height, width = size or ("H", "W")
    raise ValueError(
        f"images of shape {tuple(x_BCHW.shape)} found, expected (batch, 3, {height}, {width}); resize them, "
        "or adapt the model to their size (model.weights.adapt)"
    )

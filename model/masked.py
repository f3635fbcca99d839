"""Masked patch prediction: the self-supervised objective of the paper (Section 4.6 and Appendix B.1.2).

Half of an image's patch embeddings are corrupted before positions are added: 80 % of them replaced by a
learned mask embedding, 10 % by the embedding of another patch, 10 % kept. At those places the network
predicts the patch's mean colour in 3 bits a channel (512 classes). The two other targets the paper tried: the
same over a 4x4 thumbnail of the patch (16 predictions of 512 classes), and the patch itself under a squared
error. What is kept of it is the backbone: `backbone_state` gives a classifier's weights.

Not printed in the paper, chosen here: exactly half of the places of each image are drawn; the other patch is
of the same image; each channel's range [-1, 1] is cut into 8 equal bins.

Axes: B batch, N patches, T tokens, D width, H and W pixels, O outputs of the prediction head.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checks import check_known
from model.config import ViTConfig
from model.initialise import init_parameters
from model.interface import Gather
from model.vit import ViT

Target = Literal["mean_colour", "thumbnail", "pixels"]
BITS = 3  # of each channel
LEVELS = 2**BITS
COLOURS = LEVELS**3
THUMBNAIL = 4  # side of the thumbnail, in its pixels
PREFIX = "backbone."  # of the names of parameters that are kept; all others belong to the objective
DROPPED = frozenset({"mask_token", "prediction_head.weight", "prediction_head.bias"})
CHECK_SIDE = "choose a patch whose sides are divisible by 4, or target mean_colour"


@dataclass(frozen=True, slots=True)
class Shares:
    """How much is corrupted, and how; as the paper by default."""

    corrupted: float = 0.5  # of the patches
    masked: float = 0.8  # of the corrupted ones
    swapped: float = 0.1  # of the corrupted ones; the rest is kept


@dataclass(frozen=True, slots=True)
class Corruption:
    """Which patch embeddings are corrupted, and how."""

    corrupted_BN: Tensor  # bool: places where a prediction counts
    masked_BN: Tensor  # bool: replaced by the mask embedding
    source_BN: Tensor  # int64: the patch whose embedding stands here (its own number, but where swapped)


def draw_corruption(
    batch: int, patches: int, generator: torch.Generator, shares: Shares | None = None
) -> Corruption:
    """A random corruption of `batch` images of `patches` patches each; the same generator, the same one."""
    chances_B3N = torch.rand(batch, 3, patches, generator=generator, device=generator.device)
    return corruption_of(chances_B3N, shares or Shares())


def corruption_of(chances_B3N: Tensor, shares: Shares) -> Corruption:
    """The corruption that three random numbers in [0, 1) for each patch stand for.

    The first says by its order within the image which patches are corrupted, the second how, the third which
    other patch a swapped one is taken from. Each image's corruption depends on its own numbers alone.
    """
    order_BN, action_BN, other_BN = chances_B3N.unbind(dim=1)
    patches = chances_B3N.shape[-1]
    rank_BN = order_BN.argsort(dim=1, stable=True).argsort(dim=1)
    corrupted_BN = rank_BN < round(shares.corrupted * patches)
    masked_BN = corrupted_BN & (action_BN < shares.masked)
    swapped_BN = corrupted_BN & ~masked_BN & (action_BN < shares.masked + shares.swapped)
    own_N = torch.arange(patches, device=chances_B3N.device)
    others = max(patches - 1, 1)  # rounding must not lead back to the patch itself
    shift_BN = 1 + (other_BN * others).long().clamp(max=others - 1)
    source_BN = torch.where(swapped_BN, (own_N + shift_BN) % patches, own_N)
    return Corruption(corrupted_BN, masked_BN, source_BN)


class MaskedPatchModel(nn.Module):
    """A ViT without its head, a mask embedding and a linear prediction for each patch.

    Raises ValueError for what could not be trained: attention pooling, which no prediction passes through;
    thumbnails of patches that do not divide.
    """

    def __init__(self, config: ViTConfig, target: Target = "mean_colour") -> None:
        super().__init__()
        check_known("target of masked patch prediction", target, get_args(Target))
        if config.pool == "map":
            raise ValueError(
                "pool 'map' found with masked patch prediction, which would leave attention pooling "
                "untrained; set pool to 'token' or 'gap'"
            )
        if target == "thumbnail" and any(side % THUMBNAIL for side in input_patch(config)):
            raise ValueError(
                f"target 'thumbnail' cuts patches into {THUMBNAIL}x{THUMBNAIL} parts, found patches of "
                f"{input_patch(config)} pixels; {CHECK_SIDE}"
            )
        self.target = target
        self.patch = input_patch(config)
        self.config = config
        self.backbone = ViT(config)
        # No gradient would reach them, and weight decay would act on them all the same.
        del self.backbone.head
        self.backbone.pre_logits = None
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.prediction_head = nn.Linear(config.width, outputs_of(config, target))

    def forward(self, x_BCHW: Tensor, corruption: Corruption) -> Tensor:
        """A prediction for every patch, (B, N, O), from images whose embeddings are corrupted as said."""
        lead = int(self.backbone.config.has_class_token)
        tokens_BTD = self.backbone.tokens(x_BCHW)
        class_B1D, patches_BND = tokens_BTD[:, :lead], tokens_BTD[:, lead:]
        source_BND = corruption.source_BN.unsqueeze(-1).expand_as(patches_BND)
        patches_BND = patches_BND.gather(1, source_BND)
        patches_BND = torch.where(
            corruption.masked_BN.unsqueeze(-1), self.mask_token.to(patches_BND.dtype), patches_BND
        )
        encoded_BTD = self.backbone.encode_tokens(torch.cat([class_B1D, patches_BND], dim=1))
        predictions_BNO: Tensor = self.prediction_head(self.backbone.norm(encoded_BTD[:, lead:]))
        return predictions_BNO

    @property
    def blocks(self) -> nn.ModuleList:
        """The backbone's blocks, for an engine that compiles them one by one."""
        return self.backbone.blocks

    def set_activation_checkpointing(self, on: bool) -> None:
        """As `ImageModel.set_activation_checkpointing`."""
        self.backbone.set_activation_checkpointing(on)

    def init_weights(self, generator: torch.Generator | None = None, gather: Gather | None = None) -> None:
        """Fresh weights for backbone, mask embedding and prediction head; see `ImageModel.init_weights`."""
        self.backbone.init_weights(generator, gather)
        mine = nn.ModuleDict({"prediction_head": self.prediction_head})
        mine.register_parameter("mask_token", self.mask_token)
        init_parameters(mine, self.backbone.config, generator, gather)

    def loss_sum(
        self, predictions_BNO: Tensor, x_BCHW: Tensor, corruption: Corruption, weight_B: Tensor | None = None
    ) -> Tensor:
        """Sum over samples of weight x mean loss over corrupted places, float32 (as model/losses.py)."""
        loss_BN = patch_losses(predictions_BNO, x_BCHW, self.patch, self.target)
        loss_B = mean_over_corrupted(loss_BN, corruption)
        return loss_B.sum() if weight_B is None else (loss_B * weight_B.float()).sum()


def mean_over_corrupted(value_BN: Tensor, corruption: Corruption) -> Tensor:
    """Mean over the corrupted places of each image, (B,)."""
    counted_BN = corruption.corrupted_BN.float()
    return (value_BN * counted_BN).sum(dim=1) / counted_BN.sum(dim=1).clamp(min=1)


def patch_losses(predictions_BNO: Tensor, x_BCHW: Tensor, patch: tuple[int, int], target: Target) -> Tensor:
    """The loss of each patch, (B, N): cross-entropy (mean of 16 for thumbnails) or mean squared error."""
    if target == "pixels":
        return (predictions_BNO.float() - cut_patches(x_BCHW, patch)).square().mean(dim=-1)
    classes_BNS = colour_classes(x_BCHW, patch, _side(target))
    logits = predictions_BNO.float().reshape(-1, COLOURS)
    return (
        F.cross_entropy(logits, classes_BNS.flatten(), reduction="none").view(classes_BNS.shape).mean(dim=-1)
    )


def patch_accuracies(
    predictions_BNO: Tensor, x_BCHW: Tensor, patch: tuple[int, int], target: Target
) -> Tensor | None:
    """Share of each patch's colours that are predicted right, (B, N); None for pixels, without classes."""
    if target == "pixels":
        return None
    classes_BNS = colour_classes(x_BCHW, patch, _side(target))
    predicted_BNS = predictions_BNO.reshape(*classes_BNS.shape, COLOURS).argmax(dim=-1)
    return predicted_BNS.eq(classes_BNS).float().mean(dim=-1)


def _side(target: Target) -> int:
    return 1 if target == "mean_colour" else THUMBNAIL


def colour_classes(x_BCHW: Tensor, patch: tuple[int, int], side: int = 1) -> Tensor:
    """Mean colours of each patch cut into `side` x `side` parts, as class numbers (B, N, side^2) below 512.

    Red holds the highest three bits, blue the lowest. Images are RGB in [-1, 1].
    """
    part = (patch[0] // side, patch[1] // side)
    mean_BCHW = F.avg_pool2d(x_BCHW.float(), part)
    level_BCHW = ((mean_BCHW + 1) / 2 * LEVELS).floor().clamp(0, LEVELS - 1).long()
    red, green, blue = level_BCHW.unbind(dim=1)
    return cut_patches(((red * LEVELS + green) * LEVELS + blue).unsqueeze(1), (side, side))


def cut_patches(x_BCHW: Tensor, patch: tuple[int, int]) -> Tensor:
    """Patches in raster order, (B, N, C x rows x columns)."""
    batch, channels, height, width = x_BCHW.shape
    rows, columns = patch
    cut = x_BCHW.reshape(batch, channels, height // rows, rows, width // columns, columns)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // rows) * (width // columns), -1)


def input_patch(config: ViTConfig) -> tuple[int, int]:
    """Height and width in image pixels of what one token covers, the stem's stride included."""
    return config.stem_stride * config.patch[0], config.stem_stride * config.patch[1]


def outputs_of(config: ViTConfig, target: Target) -> int:
    """Outputs of the prediction head for each patch."""
    sizes: Mapping[Target, int] = {
        "mean_colour": COLOURS,
        "thumbnail": THUMBNAIL**2 * COLOURS,
        "pixels": 3 * math.prod(input_patch(config)),
    }
    return sizes[target]


def count_masked_parameters(config: ViTConfig, target: Target) -> int:
    """Trainable numbers of a `MaskedPatchModel`; nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in MaskedPatchModel(config, target).parameters())


def kept_config(config: ViTConfig) -> ViTConfig:
    """The configuration of `backbone_state`: one class, no hidden layer."""
    return replace(config, num_classes=1, head_bias=0.0, representation=False)


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the classifier `kept_config` from those of a `MaskedPatchModel`.

    The backbone is kept, the mask embedding and the prediction head are dropped, and a head of zeros for one
    class stands where a classifier has its own: whoever trains on puts a new one there. Raises ValueError for
    a parameter that is of neither kind.
    """
    strange = [name for name in state if name not in DROPPED and not name.startswith(PREFIX)]
    if strange or any(name not in state for name in DROPPED):
        raise ValueError(
            f"weights of masked patch prediction with {', '.join(strange) or 'parts missing'}, expected "
            f"{', '.join(sorted(DROPPED))} and names that begin with {PREFIX!r}; nothing was kept"
        )
    kept = {name.removeprefix(PREFIX): value for name, value in state.items() if name not in DROPPED}
    width = state["mask_token"].shape[-1]
    return kept | {"head.weight": torch.zeros(1, width), "head.bias": torch.zeros(1)}

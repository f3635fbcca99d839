"""Looking into a Vision Transformer: the numbers behind the paper's Figures 6, 7, 10 and 11.

In go a model and images, out come plain tensors; drawing them is somebody else's. Attention is computed anew
beside each block (the fused kernel keeps none) and layer by layer, so that only one layer's maps are in
memory.

Axes: B batch, h heads, T tokens (class token first), N patches, L layers, D width, P patch side, R and S rows
and columns of the grid.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from model.vit import ViT


@torch.no_grad()
def attention_layers(model: ViT, x_BCHW: Tensor) -> Iterator[Tensor]:
    """Attention after the softmax of one layer after the other, (B, h, T, T), rows are queries."""
    x_BTD = model.tokens(x_BCHW)
    for layer, block in enumerate(model.blocks):
        x_BTD, offsets_RD = model.positioned(x_BTD, layer), model.offsets_of(layer)
        yield block.attention.weights(block.norm1(x_BTD), offsets_RD)  # type: ignore[operator, union-attr]
        x_BTD = block(x_BTD, offsets_RD)


@torch.no_grad()
def rollout(model: ViT, x_BCHW: Tensor) -> Tensor:
    """Attention from the output to each patch through all layers, (B, R, S) (Appendix D.8, Figures 6 and 14).

    Each layer's attention is averaged over heads, the identity added, the rows normalised, and the layers
    multiplied. Read at the class token; with mean pooling, which has none, as the mean over tokens.
    Evaluation mode is the caller's to set.
    """
    paths_BTT: Tensor | None = None
    for weights_BhTT in attention_layers(model, x_BCHW):
        mixed_BTT = weights_BhTT.mean(dim=1) + torch.eye(weights_BhTT.shape[-1], device=weights_BhTT.device)
        mixed_BTT = mixed_BTT / mixed_BTT.sum(dim=-1, keepdim=True)
        paths_BTT = mixed_BTT if paths_BTT is None else mixed_BTT @ paths_BTT
    assert paths_BTT is not None, "a ViT has at least one block"
    if model.config.has_class_token:
        return paths_BTT[:, 0, 1:].reshape(-1, *model.config.grid)
    return paths_BTT.mean(dim=1).view(-1, *model.config.grid)


def rollout_mask(rollout_BRS: Tensor, image_size: tuple[int, int], blur: float) -> Tensor:
    """The rollout as a mask over the image, (B, H, W) in [0, 1].

    As the authors render it (vit_jax issue 27): divided by its maximum, brought to the image's size, blurred
    by a Gaussian of deviation `blur` (pixels; the patch side), stretched to [0, 1]. They resize by Lanczos,
    this by a bicubic kernel.
    """
    scaled_B1RS = (rollout_BRS / rollout_BRS.amax(dim=(1, 2), keepdim=True)).unsqueeze(1)
    image_B1HW = F.interpolate(scaled_B1RS, size=image_size, mode="bicubic", align_corners=False)
    blurred_BHW = _blur(image_B1HW, blur).squeeze(1)
    low, high = blurred_BHW.amin(dim=(1, 2), keepdim=True), blurred_BHW.amax(dim=(1, 2), keepdim=True)
    return (blurred_BHW - low) / (high - low).clamp(min=1e-12)


@torch.no_grad()
def attention_distance(model: ViT, batches: Iterable[Tensor]) -> Tensor:
    """Mean distance in image pixels over which each head attends, (L, h) (Appendix D.7, Figures 7 and 11).

    Weights from patch to patch, times their distance, summed over keys, averaged over queries and images. The
    class token's row and column are left out and the rest is not normalised again, as in the authors' code
    (vit_jax issue 162).
    """
    distance_NN = patch_distances(model)
    lead = int(model.config.has_class_token)
    total, images = torch.zeros(model.config.depth, model.config.heads), 0
    for x_BCHW in batches:
        for layer, weights_BhTT in enumerate(attention_layers(model, x_BCHW)):
            spread_BhN = (weights_BhTT[..., lead:, lead:] * distance_NN.to(weights_BhTT)).sum(dim=-1)
            total[layer] += spread_BhN.mean(dim=-1).sum(dim=0).cpu()
        images += len(x_BCHW)
    if not images:
        raise ValueError("no images found to measure attention over, expected at least one; give some")
    return total / images


def patch_distances(model: ViT) -> Tensor:
    """Euclidean distance between the places of any two patches, in image pixels, (N, N)."""
    config = model.config
    rows, columns = config.grid
    y_N = torch.arange(rows).repeat_interleave(columns) * (config.stem_stride * config.patch[0])
    x_N = torch.arange(columns).repeat(rows) * (config.stem_stride * config.patch[1])
    place_N2 = torch.stack([y_N, x_N], dim=1).float()
    return torch.cdist(place_N2, place_N2, compute_mode="donot_use_mm_for_euclid_dist")


@torch.no_grad()
def patch_filters(model: ViT, count: int = 28) -> tuple[Tensor, Tensor]:
    """First principal components of the patch filters, (count, 3, P, P), and their variance shares.

    Figure 7, left. The filters are centred first; each component has length 1 and an arbitrary sign. Raises
    ValueError for a hybrid, whose patches are not pixels, and for more components than there are.
    """
    weight = model.embedding.patch.weight.float()
    if model.config.stem is not None:
        raise ValueError(
            f"model {model.config.name!r} embeds a stem's output, not pixels; choose a model without a stem"
        )
    filters_DF = weight.flatten(1) - weight.flatten(1).mean(dim=0)
    most = min(filters_DF.shape)
    if not 1 <= count <= most:
        raise ValueError(
            f"{count} components asked for, expected from 1 to {most} for this model; ask for fewer"
        )
    _, singular, components = torch.linalg.svd(filters_DF, full_matrices=False)
    shares = singular.square() / singular.square().sum()
    return components[:count].view(count, *weight.shape[1:]), shares[:count]


@torch.no_grad()
def position_similarity(model: ViT, layer: int = 0) -> Tensor:
    """Cosine similarity of each patch's position with all others, (R, S, R, S) (Figures 7 centre and 10).

    The class token's row is left out. Raises ValueError for a model without positions that are added to
    tokens.
    """
    if not model.positions.acts_at(layer):
        raise ValueError(
            f"model {model.config.name!r} adds no positions before layer {layer} (positions "
            f"{model.config.positions!r}, at {model.config.positions_at!r}); choose another layer or model"
        )
    table_ND = model.positions.added(layer)[int(model.config.has_class_token) :].float()
    unit_ND = F.normalize(table_ND, dim=1)
    rows, columns = model.config.grid
    return (unit_ND @ unit_ND.T).view(rows, columns, rows, columns)


def _blur(image_B1HW: Tensor, deviation: float) -> Tensor:
    if deviation <= 0:
        return image_B1HW
    reach = math.ceil(3 * deviation)
    offset = torch.arange(-reach, reach + 1, dtype=image_B1HW.dtype, device=image_B1HW.device)
    kernel = torch.exp(-0.5 * (offset / deviation) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image_B1HW, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))

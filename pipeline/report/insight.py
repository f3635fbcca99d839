"""What a Vision Transformer learned, in four pictures after the paper's Figures 6, 7, 10 and 11.

    rollout     where the output looks, over each image               Figure 6
    filters     principal components of the patch filters             Figure 7, left
    positions   similarity of each patch's position with all others   Figures 7, centre, and 10
    distance    how far each head looks, layer by layer               Figures 7, right, and 11

The numbers come from model/insight.py, the drawings are made by insight_plots.py. A picture that a model
cannot have is left out with the reason. Numbers are rounded before they are drawn, so that their last bits
do not change a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model import insight
from model.interface import ImageModel
from model.vit import ViT
from pipeline.report import insight_plots as plots
from pipeline.report.figures import Drawing
from pipeline.report.insight_plots import Array
from pipeline.train.loop import normalise

PICTURES = ("rollout", "filters", "positions", "distance")
_FILTERS = 28  # as many as the paper shows
_BATCH = 8  # images at a time: attention maps are large


@dataclass(frozen=True)
class Insight:
    """Pictures by name, the numbers they show as plain JSON, and why a picture is missing.

    numbers:
        rollout: {"images": [{"image", "shares" (rows × columns, sum 1), "half_on"}]}; half_on: the smallest
            number of patches that together get half of the attention
        filters: {"shares": [share of the filters' variance]}
        positions: {"similarity": rows × columns × rows × columns, cosines}
        distance: {"pixels": layers × heads, "even": of attention that is the same for all patches, "images"}
    """

    drawings: dict[str, Drawing]
    numbers: dict[str, Any]
    left_out: dict[str, str]


def draw(model: ImageModel, images_BCHW: Tensor, names: Sequence[str], *, shown: int) -> Insight:
    """Look into `model`, which is in evaluation mode, on the device it is on.

    Args:
        images_BCHW: uint8, at the model's size, at least one; all count for the distance.
        names: of the images.
        shown: at most so many of the images get a rollout, spread evenly over them.
    """
    if not isinstance(model, ViT):
        reason = f"{model.config.name} is a ResNet: no attention, patches or positions"
        return Insight({}, {}, dict.fromkeys(PICTURES, reason))
    parts: dict[str, Callable[[], tuple[Drawing, dict[str, Any]]]] = {
        "rollout": lambda: _rollout(model, images_BCHW, names, shown),
        "filters": lambda: _filters(model),
        "positions": lambda: _positions(model),
        "distance": lambda: _distance(model, images_BCHW),
    }
    found = Insight({}, {}, {})
    for name, part in parts.items():
        try:
            found.drawings[name], found.numbers[name] = part()
        except ValueError as error:  # what model/insight.py says about a model that has no such thing
            found.left_out[name] = str(error)
    return found


def _rollout(
    model: ViT, images_BCHW: Tensor, names: Sequence[str], shown: int
) -> tuple[Drawing, dict[str, Any]]:
    places = spread(len(images_BCHW), shown)
    chosen_BCHW = images_BCHW[places]
    rollout_BRS = torch.cat([insight.rollout(model, x).cpu() for x in _batches(model, chosen_BCHW)])
    shares = _rounded(rollout_BRS / rollout_BRS.sum(dim=(1, 2), keepdim=True), 6)
    blur = max(model.config.patch) * model.config.stem_stride
    masks_BHW = insight.rollout_mask(torch.from_numpy(shares).float(), model.config.image_size, blur)
    labels = [names[place] for place in places]
    drawing = plots.rollout(chosen_BCHW, masks_BHW, shares, labels)
    rows = [
        {"image": label, "shares": share.tolist(), "half_on": half_on(share)}
        for label, share in zip(labels, shares, strict=True)
    ]
    return drawing, {"images": rows}


def _filters(model: ViT) -> tuple[Drawing, dict[str, Any]]:
    weight = model.embedding.patch.weight
    count = min(_FILTERS, len(weight) - 1, weight[0].numel())
    components, shares = (part.cpu() for part in insight.patch_filters(model, count))
    rounded = _rounded(shares, 4)
    return plots.filters(components, rounded), {"shares": rounded.tolist()}


def _positions(model: ViT) -> tuple[Drawing, dict[str, Any]]:
    similarity = _rounded(insight.position_similarity(model), 3)
    return plots.positions(similarity), {"similarity": similarity.tolist()}


def _distance(model: ViT, images_BCHW: Tensor) -> tuple[Drawing, dict[str, Any]]:
    pixels = _rounded(insight.attention_distance(model, _batches(model, images_BCHW)), 2)
    even = round(float(insight.patch_distances(model).mean()), 2)
    numbers = {"pixels": pixels.tolist(), "even": even, "images": len(images_BCHW)}
    return plots.distance(pixels, even), numbers


def _batches(model: ViT, images_BCHW: Tensor) -> list[Tensor]:
    # A generator would do, but one batch of float pixels is small beside its attention maps.
    device = model.head.weight.device
    return [normalise(part.to(device)) for part in torch.split(images_BCHW, _BATCH)]


def spread(count: int, most: int) -> list[int]:
    """At most `most` places out of `count`, evenly spread, the first and the last among them."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, most)).round()]


def half_on(shares: Array) -> int:
    """The smallest number of patches that together have half of the attention."""
    falling = np.sort(shares.ravel())[::-1].cumsum()
    half = falling[-1] * (0.5 - 1e-9)  # sums of rounded shares are a little off
    return int(np.searchsorted(falling, half) + 1)


def _rounded(values: Tensor, digits: int) -> Array:
    return np.round(values.detach().cpu().double().numpy(), digits)

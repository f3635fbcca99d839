"""A weights file as something to look into: the model, and images as it was trained to see them.

The header of the file says how images were prepared (pipeline/train/training.py writes it); decoding and
resizing are those of training and evaluation. Nothing here trains or scores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import config_from_dict
from model.interface import ImageModel
from model.weights.files import load_into, load_weights
from model.zoo import build
from pipeline.config import AugmentSettings
from pipeline.data.augment import evaluation_pixels
from pipeline.data.decode import Pixels, decode
from pipeline.data.loader import EvalLoader
from pipeline.data.mixture import AnyView
from pipeline.errors import DataError, UserError

_BATCH = 32
_THREADS = 2


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode on the CPU, and how it sees images.

    `augment`: only its part for evaluation counts. `classes`: by number; empty where the file does not say.
    `note`: what had to be assumed, or nothing.
    """

    model: ImageModel
    image_size: tuple[int, int]  # height, width
    augment: AugmentSettings
    classes: tuple[str, ...]
    note: str


def load_trained(path: Path) -> Trained:
    """Open what `save_weights` wrote.

    Raises:
        UserError: no such file, or not a weights file of ours.
    """
    try:
        state, config, header = load_weights(path)
        model = build(config_from_dict(config), initialise=False)
        load_into(model, state)
    except (ValueError, OSError) as error:
        raise UserError(
            str(error), "a weights file of a training, or of `vitline model import`", "name such a file"
        ) from error
    augment, note = _preprocessing(header)
    classes = tuple(json.loads(header.get("classes", "[]")))
    return Trained(model.eval(), model.config.image_size, augment, classes, note)


def _preprocessing(header: Mapping[str, str]) -> tuple[AugmentSettings, str]:
    if "preprocessing" not in header:
        return AugmentSettings(), (
            "the file does not say how images were prepared: they are resized to the model's size and scaled "
            "to [-1, 1], as in the paper's code"
        )
    found = json.loads(header["preprocessing"])
    return AugmentSettings(evaluate=found["evaluate"], larger=found["larger"]), ""


def as_seen(trained: Trained, image: bytes) -> Pixels | str:
    """An encoded image as evaluation sees it, (H, W, 3) uint8; or, as from `decode`, the reason why not."""
    pixels = decode(image)
    if isinstance(pixels, str):
        return pixels
    return np.ascontiguousarray(evaluation_pixels(trained.augment, pixels, trained.image_size))


def read_images(trained: Trained, paths: Sequence[Path]) -> Tensor:
    """Image files as the model sees them, uint8 (B, 3, H, W), in the order of `paths`.

    Raises:
        UserError: a file that cannot be read.
        DataError: a file that cannot be decoded.
    """
    rows = []
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: {error.strerror}", "an image file", "name image files, as photos/*.jpg"
            ) from error
        pixels = as_seen(trained, data)
        if isinstance(pixels, str):
            raise DataError(
                f"{path} cannot be decoded: {pixels}",
                "a JPEG, PNG or WebP image",
                "repair it or leave it out",
            )
        rows.append(pixels)
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2)


def view_images(trained: Trained, view: AnyView) -> tuple[Tensor, list[str]]:
    """All samples of a view as the model sees them, uint8 (B, 3, H, W), and their keys.

    Samples that cannot be decoded are left out. Closes the view.
    """
    height, width = trained.image_size
    assert height == width, "trainings of a run see squares alone"
    images, keys = [], []
    with EvalLoader(
        view,
        batch=_BATCH,
        image_size=height,
        augment=trained.augment,
        threads=_THREADS,
        rank=0,
        world=1,
    ) as loader:
        for batch in loader:
            good = batch.weights > 0
            images.append(batch.images[good].clone())
            keys += [view.key(int(sample)) for sample in batch.ids[good]]
    return torch.cat(images), keys

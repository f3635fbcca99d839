"""The contenders of `vitline bench data`: each gives batches of training images, in this process, for ever.

All do the same work: read, decode, a random crop of 5 to 100 % of the area, bilinear to
the training size, mirror, uint8 batch. Ours by the reader of this project; the others by their own reader and
torchvision's transforms on Pillow images, as their users run them (open_clip, timm's `wds/` datasets).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from launch.bench.data_sets import ImageSet
from pipeline.config import AugmentSettings, OrderSettings
from pipeline.data.augment import TrainPixels, draw
from pipeline.data.decode import decode_part
from pipeline.data.loader import TrainLoader
from pipeline.data.view import View

SLICE = 12  # batches of a contender in a round: enough to hide the start of a loader
AREA = (0.05, 1.0)
_SHUFFLE = 1000  # samples in the shuffle buffer of readers that have one; open_clip's default is 5000
_SETTINGS = AugmentSettings(area=AREA)

Batches = Iterator[int]
"""Each step makes one batch, and gives its number of images."""


def contenders() -> dict[str, Callable[[ImageSet], Batches]]:
    """Name → maker of batches, of those that are installed here; `ours` and `kernel` always are."""
    installed = {name: peer.make for name, peer in _peers().items() if find_spec(peer.module)}
    return {"ours": ours, "kernel": _kernel, **installed}


def missing() -> list[str]:
    """Packages of peers that are not installed."""
    return [peer.package for peer in _peers().values() if not find_spec(peer.module)]


class _Peer(NamedTuple):
    module: str
    package: str
    make: Callable[[ImageSet], Batches]


def _peers() -> dict[str, _Peer]:
    return {
        "webdataset": _Peer("webdataset", "webdataset", _webdataset),
        "timm": _Peer("timm", "timm", _timm),
        "mosaic": _Peer("streaming", "mosaicml-streaming", _mosaic),
        "litdata": _Peer("litdata", "litdata", _litdata),
    }


def ours(found: ImageSet, threads: int = 1) -> Batches:
    """Our reader. A loader makes the batches of one round, and its threads have ended when they are given,
    so that none works in another's time."""
    view, first = found.view(), 0
    while True:
        with our_loader(found, view, first, SLICE, threads) as loader:
            batches = [len(batch.ids) for batch in loader]
        yield from batches
        first += SLICE


def our_loader(found: ImageSet, view: View, first_step: int, steps: int, threads: int = 1) -> TrainLoader:
    """Batches `first_step` and the `steps` - 1 after it."""
    return TrainLoader(
        view,
        batch=found.batch,
        image_size=found.image_size,
        augment=_SETTINGS,
        order=OrderSettings(),
        seed=0,
        threads=threads,
        bad_samples=0,
        rank=0,
        world=1,
        first_step=first_step,
        steps=first_step + steps,
    )


def _kernel(found: ImageSet) -> Batches:
    """Decoding and cropping alone, of bytes in memory into the rows of one batch."""
    view = found.view()
    data = [view.read(sample) for sample in range(min(view.samples, 512))]
    pixels = np.empty((found.batch, found.image_size, found.image_size, 3), dtype=np.uint8)
    start = 0
    while True:
        ids = (start + np.arange(found.batch)) % len(data)
        rows = TrainPixels(_SETTINGS, found.image_size, draw(_SETTINGS, 0, np.full(found.batch, start), ids))
        for row, sample in enumerate(ids.tolist()):
            image = decode_part(data[sample], partial(rows.wanted, row))
            assert not isinstance(image, str), image
            pixels[row] = rows.pixels(image, row)
        start += found.batch
        yield found.batch


def _transform(size: int) -> Callable[[Any], torch.Tensor]:
    """What their users write: uint8 tensors of a random crop, mirrored half of the time."""
    crop = v2.RandomResizedCrop(size, scale=AREA, antialias=True)
    steps = [crop, v2.RandomHorizontalFlip(), v2.PILToTensor()]
    transform: Callable[[Any], torch.Tensor] = v2.Compose(steps)
    return transform


def _decoded(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def _count(loader: Any) -> Batches:
    while True:
        yield from (len(batch[0]) for batch in loader)


def _webdataset(found: ImageSet) -> Batches:
    """As open_clip builds it: shards and samples shuffled, Pillow, torchvision, batched in the pipeline."""
    import webdataset

    steps = [
        webdataset.ResampledShards(found.tars),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(_SHUFFLE, initial=_SHUFFLE // 5),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;jpeg", label="cls"),
        webdataset.map_dict(image=_transform(found.image_size)),
        webdataset.to_tuple("image", "label"),
        webdataset.batched(found.batch, partial=False),
    ]
    return _count(webdataset.WebLoader(webdataset.DataPipeline(*steps), batch_size=None, num_workers=0))


def _timm(found: ImageSet) -> Batches:
    """timm's `wds/` reader under its own IterableImageDataset."""
    timm_dataset = import_module("timm.data").IterableImageDataset
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = timm_dataset(
            str(found.root / "ours"),
            reader="wds/",
            split=f"train/{{{Path(found.tars[0]).stem}..{Path(found.tars[-1]).stem}}}.tar",
            is_training=True,
            batch_size=found.batch,
            num_samples=found.view().samples,
            input_key="jpg",
            transform=_transform(found.image_size),
        )
    return _count(DataLoader(dataset, batch_size=found.batch, num_workers=0))


def _photos(streaming_dataset: Any, size: int) -> Any:
    """A peer's dataset class, with samples decoded and transformed."""
    transform = _transform(size)

    class Photos(streaming_dataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return transform(_decoded(sample["image"])), sample["label"]

    return Photos


def _mosaic(found: ImageSet) -> Batches:
    photos = _photos(import_module("streaming").StreamingDataset, found.image_size)
    dataset = photos(local=str(found.root / "mosaic"), shuffle=True, batch_size=found.batch)
    return _count(DataLoader(dataset, batch_size=found.batch, num_workers=0, drop_last=True))


def _litdata(found: ImageSet) -> Batches:
    litdata = import_module("litdata")
    dataset = _photos(litdata.StreamingDataset, found.image_size)(str(found.root / "litdata"), shuffle=True)
    return _count(litdata.StreamingDataLoader(dataset, batch_size=found.batch, num_workers=0, drop_last=True))

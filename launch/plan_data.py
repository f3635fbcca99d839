"""What is known about a dataset before it is prepared, and all that is known afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.config import (
    DigitsSource,
    GlyphsSource,
    RunConfig,
    SpritesSource,
    TorchvisionSource,
    WebdatasetSource,
)
from pipeline.data.manifest import FILE, load_manifest
from pipeline.data.sources.sprites import COUNTS, DIRECTIONS
from pipeline.graph import Planned
from pipeline.rundir import RunDir
from pipeline.stages import prepare


@dataclass(frozen=True, slots=True)
class DataSize:
    """A dataset's size. None: not known; `how` says where the numbers come from."""

    train: int | None
    test: int | None
    classes: int | None
    disk_bytes: int | None  # of the shards that this run writes; 0 where it adopts those of others
    image_bytes: int | None  # mean size of a sample in its shard
    how: str


# Train (with validation where the recipe joins them), test, classes: as the datasets' papers print them.
TORCHVISION: Mapping[str, tuple[int, int, int]] = {
    "CIFAR10": (50_000, 10_000, 10),
    "CIFAR100": (50_000, 10_000, 100),
    "DTD": (3_760, 1_880, 47),
    "EuroSAT": (21_600, 5_400, 10),
    "FGVCAircraft": (6_667, 3_333, 100),
    "FashionMNIST": (60_000, 10_000, 10),
    "Flowers102": (2_040, 6_149, 102),
    "Food101": (75_750, 25_250, 101),
    "KMNIST": (60_000, 10_000, 10),
    "MNIST": (60_000, 10_000, 10),
    "OxfordIIITPet": (3_680, 3_669, 37),
    "STL10": (5_000, 8_000, 10),
    "SVHN": (73_257, 26_032, 10),
}
_SPRITE_CLASSES = {"count": COUNTS, "orientation": DIRECTIONS}
_DIGITS = 1797
# Where nobody knows them; plans that use it say so.
UNKNOWN_CLASSES = 1000
# A tar holds a header and padding for the image and for its label.
_TAR_BYTES = 3 * 512
# Mean of ImageNet-1k's training photos: 138 GB for 1,281,167.
_PHOTO_BYTES = 110_000
# Samples from this size on are taken to be photos, which are slow to decode.
PHOTO_BYTES = 20_000


def size_of(config: RunConfig, name: str, run: RunDir, planned: Mapping[str, Planned]) -> DataSize:
    """Size of the dataset `name`: from its manifest where it is prepared, else from its settings.

    `planned` holds the run's jobs by name.
    """
    directory = run.job(planned[prepare.job_name(name)].digest).path
    if (directory / FILE).exists():
        manifest = load_manifest(directory)
        splits = manifest.splits
        size = sum(shard.bytes for split in splits.values() for shard in split.shards)
        samples = sum(split.samples for split in splits.values())
        adopted = isinstance(config.datasets[name], WebdatasetSource)
        return DataSize(
            splits["train"].samples,
            splits["test"].samples,
            len(manifest.classes),
            0 if adopted else size,
            size // max(samples, 1),
            "its manifest",
        )
    return _from_settings(config.datasets[name])


def size_of_pretraining(config: RunConfig, sizes: Mapping[str, DataSize], given: DataSize) -> DataSize:
    """What pre-training reads: one dataset, or a mixture taken together. What is `given` counts most.

    Classes of a mixture are taken to be different ones; an image has its datasets' weighted mean size.
    """
    shares = config.pretrain.shares
    parts = [sizes[name] for name in shares]
    weights = [weight / sum(shares.values()) for weight in shares.values()]
    image = [part.image_bytes for part in parts]
    return DataSize(
        given.train or _sum(part.train for part in parts),
        given.test or _sum(part.test for part in parts),
        given.classes or _sum(part.classes for part in parts),
        _sum(part.disk_bytes for part in parts),
        None
        if None in image
        else round(sum((size or 0) * weight for size, weight in zip(image, weights, strict=True))),
        given.how or " and ".join(sorted({part.how for part in parts})),
    )


def _sum(values: Iterable[int | None]) -> int | None:
    """None where one is not known."""
    total = 0
    for value in values:
        if value is None:
            return None
        total += value
    return total


def _from_settings(source: object) -> DataSize:
    if isinstance(source, GlyphsSource):
        train, test = source.classes * source.train_per_class, source.classes * source.test_per_class
        return _drawn(train, test, source.classes, source.image_size)
    if isinstance(source, SpritesSource):
        return _drawn(source.train, source.test, _SPRITE_CLASSES[source.label], source.image_size)
    if isinstance(source, DigitsSource):
        test = round(_DIGITS * source.test_fraction)
        return _drawn(_DIGITS - test, test, 10, source.image_size)
    if isinstance(source, TorchvisionSource):
        known = TORCHVISION.get(source.source.partition(":")[2])
        if known is None:
            return DataSize(None, None, None, None, None, "not known before it is prepared")
        return DataSize(*known, None, None, "its publication")
    classes = getattr(source, "classes", None)
    adopted = isinstance(source, WebdatasetSource)
    return DataSize(
        None,
        None,
        len(classes) if classes else None,
        0 if adopted else None,
        _PHOTO_BYTES,
        "not known before it is prepared",
    )


def _drawn(train: int, test: int, classes: int, side: int) -> DataSize:
    # Drawings compress to about one byte a pixel.
    image = side * side + _TAR_BYTES
    return DataSize(train, test, classes, (train + test) * image, image, "its settings")

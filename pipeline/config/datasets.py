"""Where images come from, and how they become shards."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from pipeline.config.base import Settings


class WriteSettings(Settings):
    """How a source becomes shards."""

    shard_samples: int = Field(1000, ge=1, description="samples in a shard")
    shorter_side: int | None = Field(
        None, ge=1, description="resize to this shorter side, px; None keeps the bytes"
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of resized images")
    chunk_bytes: int = Field(
        16 * 2**20, ge=1, description="size aimed at for the unit that is shuffled, bytes"
    )


class SourceSettings(Settings):
    """What every source has."""

    write: WriteSettings = WriteSettings()
    seed: int = Field(0, ge=0, description="of what is drawn, and of the order in the shards")
    bad_images: float = Field(
        0.001, ge=0, le=1, description="share of images that may be unreadable; at least 1"
    )


class GlyphsSource(SourceSettings):
    """Drawings made on the spot: a class is a random arrangement of strokes."""

    source: Literal["glyphs"]
    classes: int = Field(200, ge=2)
    train_per_class: int = Field(100, ge=1)
    test_per_class: int = Field(10, ge=1)
    image_size: int = Field(32, ge=8, description="px")


class SpritesSource(SourceSettings):
    """Scenes of simple shapes made on the spot, labelled by count or by orientation."""

    source: Literal["sprites"]
    label: Literal["count", "orientation"]
    train: int = Field(1000, ge=1, description="samples")
    test: int = Field(1000, ge=1, description="samples")
    image_size: int = Field(32, ge=16, description="px")


class DigitsSource(SourceSettings):
    """The 1,797 handwritten digits inside scikit-learn."""

    source: Literal["digits"]
    test_fraction: float = Field(1 / 3, gt=0, lt=1)
    image_size: int = Field(32, ge=8, description="px")


class FolderSource(SourceSettings):
    """One directory a split, in it one directory a class, in it the images."""

    source: Literal["folder"]
    path: str
    train: str = Field("train", description="directory of the split inside `path`")
    test: str = Field("test", description="directory of the split inside `path`")


class TorchvisionSource(SourceSettings):
    """A dataset of torchvision, `torchvision:CIFAR10`."""

    source: str = Field(pattern=r"^torchvision:\w+$")
    root: str = Field("data/torchvision", description="where the files lie, or are downloaded to")
    download: bool = Field(True, description="fetch what is missing")


class CacheSettings(Settings):
    """Chunks of remote shards on each node's own disk."""

    directory: str | None = Field(
        None, description="None: one for each user in the system's temporary directory"
    )
    limit_gib: float = Field(100, gt=0, description="size of all chunks together")


class WebdatasetSource(SourceSettings):
    """Shards that exist already, adopted in place: paths or URLs (s3, gs, http) with braces, as in
    'train-{0000..0009}.tar'."""

    source: Literal["webdataset"]
    train: str
    test: str
    classes: tuple[str, ...] | None = Field(None, description="names; None: the numbers themselves")
    allow_damaged: bool = Field(
        False,
        description="of shards that are cut off or damaged, and of samples that are incomplete or come "
        "twice, adopt what is whole and list the rest in the manifest; False: refuse them",
    )
    cache: CacheSettings = Field(CacheSettings(), description="for shards at URLs")
    frozen: bool = Field(
        False,
        description="the shards never change: planning does not look at them. False: it asks the disk or "
        "the store for sizes and checksums, and shards that were replaced are prepared again",
    )


class ParquetSource(SourceSettings):
    """Parquet files with a column of encoded images; paths with braces or stars."""

    source: Literal["parquet"]
    train: str
    test: str
    image: str = Field("image", description="column: bytes, or a struct with `bytes`")
    label: str = Field(
        "label", description="column: class numbers or names; lists for several labels a sample"
    )
    classes: tuple[str, ...] | None = Field(None, description="names; None: as the files say")


class HuggingFaceSource(SourceSettings):
    """A dataset of Hugging Face's `datasets`: saved to disk, local, or on the hub."""

    source: Literal["huggingface"]
    path: str
    config: str | None = None
    train: str = Field("train", description="name of the split")
    test: str = Field("test", description="name of the split")
    image: str = Field("image", description="column")
    label: str = Field("label", description="column")


def _source_tag(value: Any) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return "torchvision" if isinstance(source, str) and source.startswith("torchvision:") else str(source)


DatasetSettings = Annotated[
    Annotated[GlyphsSource, Tag("glyphs")]
    | Annotated[SpritesSource, Tag("sprites")]
    | Annotated[DigitsSource, Tag("digits")]
    | Annotated[FolderSource, Tag("folder")]
    | Annotated[TorchvisionSource, Tag("torchvision")]
    | Annotated[WebdatasetSource, Tag("webdataset")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[HuggingFaceSource, Tag("huggingface")],
    Discriminator(_source_tag),
]

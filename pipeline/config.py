"""Every setting of a run: typed, frozen, with unit and range.

One YAML file becomes one `RunConfig` (pipeline/config_io.py loads it). Unknown keys are refused.
A job's digest is made of the settings it reads, so the classes here follow the stages.

    RunConfig
    ├── datasets: NAME → one of the sources
    ├── pretrain: PretrainSettings (TrainSettings + dataset + gang)
    ├── transfer: TransferSettings (protocol, datasets, seeds, starts)
    ├── fanout, tracking
    TrainJob, EvaluateJob      what one worker does; stages make these from the settings above
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator


class Settings(BaseModel):
    """Frozen, and strict about names: a typo is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# ---------------------------------------------------------------- durations

_DURATION = re.compile(r"^\s*(\d[\d_]*(?:\.\d+)?)\s*(steps?|epochs?|samples?)\s*$")


def _check_duration(value: object) -> object:
    if isinstance(value, str) and not _DURATION.match(value):
        raise ValueError(
            "expected a number and its unit, as in '300 steps', '90 epochs' or '1_000_000 samples'"
        )
    return value


Duration = Annotated[str, BeforeValidator(_check_duration)]


def to_steps(duration: str, *, batch: int, samples: int) -> int:
    """Steps in `duration`: the one place where durations are converted.

    Args:
        duration: '300 steps', '90 epochs' or '1_000_000 samples'.
        batch: samples in a step, over all ranks.
        samples: samples in an epoch.

    Epochs and samples are rounded to the nearest step. '0 steps' is 0; any other duration is at
    least one step.
    """
    match = _DURATION.match(duration)
    assert match, f"a duration was not checked: {duration!r}"
    number = float(match.group(1).replace("_", ""))
    per_unit = {"s": 1.0, "e": samples / batch, "a": 1.0 / batch}
    unit = "a" if match.group(2).startswith("sa") else match.group(2)[0]
    steps = round(number * per_unit[unit])
    return max(1, steps) if number > 0 else 0


# ---------------------------------------------------------------- datasets


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
    cache: CacheSettings = Field(CacheSettings(), description="for shards at URLs")


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

# ---------------------------------------------------------------- training


class ModelSettings(Settings):
    """A network by its name in the zoo."""

    name: str = Field(description="as `vitline model list` prints them")
    representation: bool = Field(False, description="hidden tanh layer before the head (pre-training)")
    options: dict[str, bool | int | float | str] = Field({}, description="options of the zoo, as width: 128")


class OptimizerSettings(Settings):
    """Optimizer and schedule. The rate of a step is schedule × warm-up."""

    name: Literal["adam", "sgd"] = Field("adam", description="adam: decoupled weight decay, times the rate")
    learning_rate: float = Field(1e-3, gt=0, description="peak")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: float = Field(0.0, ge=0)
    decay_all: bool = Field(True, description="True: all parameters, as the paper; False: matrices only")
    decay_times: Literal["rate", "schedule"] = Field(
        "rate", description="adam: decay × rate, as the paper; or × rate ÷ peak, as big_vision"
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="rate of each block relative to the block above it; 1: all alike"
    )
    schedule: Literal["linear", "cosine", "constant", "rsqrt"] = "cosine"
    timescale: int = Field(10_000, ge=1, description="rsqrt: steps after which the rate is peak ÷ √2")
    cooldown: Duration = Field("0 steps", description="constant and rsqrt: linear fall at the end")
    end_learning_rate: float = Field(
        0.0, ge=0, description="at the last step; the paper's linear ends at 1e-5"
    )
    warmup: Duration = "0 steps"
    clip_norm: float | None = Field(1.0, gt=0, description="global norm; None: no clipping")

    @model_validator(mode="after")
    def _settings_act(self) -> OptimizerSettings:
        if self.schedule in ("linear", "cosine") and to_steps(self.cooldown, batch=1, samples=1):
            raise ValueError(f"cooldown has no effect on schedule {self.schedule!r}; use constant or rsqrt")
        if self.name == "sgd" and self.decay_times == "schedule":
            raise ValueError("decay_times: schedule is for adam; sgd adds its weight decay to the gradient")
        return self


class AugmentSettings(Settings):
    """From a decoded image to the pixels of a training sample, and of an evaluated one."""

    train: Literal["inception", "random_crop", "resize"] = Field(
        "inception", description="inception: area and aspect drawn; random_crop: resized larger, then cropped"
    )
    area: tuple[float, float] = Field((0.05, 1.0), description="inception: share of the image's area")
    aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="inception: width ÷ height")
    larger: float = Field(
        448 / 384, ge=1, description="random_crop and centre: resized to this × image_size first"
    )
    flip: bool = Field(True, description="mirror half of the samples")
    rand_layers: int = Field(0, ge=0, description="operations of RandAugment on each sample; 0: none")
    rand_magnitude: float = Field(10, ge=0, le=20, description="of RandAugment, as big_vision counts it")
    mixup: float = Field(0, ge=0, description="parameter of the Beta distribution of shares; 0: no mixup")
    cutmix: float = Field(0, ge=0, description="the same for cutmix; with both, each pair gets one of them")
    evaluate: Literal["resize", "centre"] = Field(
        "resize", description="resize: to a square, as the paper's code"
    )


class OrderSettings(Settings):
    """Constants of the sample order, design 3.3. They are part of a run's identity."""

    lanes: int = Field(
        64, ge=1, description="runs of samples that a batch is drawn from; at most the samples"
    )
    window: int | None = Field(None, ge=1, description="places shuffled together in a lane; None: 16 chunks")


class EngineSettings(Settings):
    """What computes a step."""

    kind: Literal["plain", "zero"] = Field("zero", description="plain: PyTorch on one rank; zero: DeepSpeed")
    stage: Literal[1, 2, 3] = Field(1, description="ZeRO stage")
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="bf16: autocast, parameters stay float32"
    )
    compile: bool = Field(False, description="torch.compile, block by block")
    activation_checkpointing: bool = False
    self_test: bool = Field(True, description="compare one tiny step with float32 PyTorch before training")
    deepspeed: dict[str, Any] = Field(
        {}, description="DeepSpeed's own settings; a conflict with ours is refused"
    )


class CheckpointSettings(Settings):
    every: Duration | None = Field(None, description="None: only at the end and when stopped")
    keep: int = Field(2, ge=1, description="newest complete ones that stay")


class HealthSettings(Settings):
    """What happens when a training goes wrong."""

    loss_not_finite: Literal["stop", "skip"] = Field("stop", description="skip: leave the update out, go on")
    skips_in_a_row: int = Field(3, ge=1, description="updates left out one after the other that end it")
    spike: float | None = Field(
        None, gt=0, description="warn of a loss so many deviations above its recent mean; None: never"
    )
    stall_s: float = Field(300, gt=0, description="without a step: name the rank, dump Python stacks")


class TrainSettings(Settings):
    """One training, whatever it is for."""

    model: ModelSettings
    image_size: int = Field(224, ge=1, description="px, square")
    duration: Duration
    batch: int = Field(ge=1, description="samples in a step, over all ranks")
    micro_batch: int | None = Field(
        None, ge=1, description="samples a rank holds at once; None: all of its part"
    )
    loss: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    optimizer: OptimizerSettings = OptimizerSettings()
    augment: AugmentSettings = AugmentSettings()
    order: OrderSettings = OrderSettings()
    engine: EngineSettings = EngineSettings()
    average: float | None = Field(
        None, ge=0, lt=1, description="decay of a Polyak average, which is then what is exported; None: none"
    )
    checkpoint: CheckpointSettings = CheckpointSettings()
    health: HealthSettings = HealthSettings()
    threads: int = Field(1, ge=1, description="decoding threads in a rank")
    bad_samples: float = Field(0.001, ge=0, le=1, description="share that may fail to decode; at least 1")
    log_every: Duration = Field("10 steps", description="between two progress events")
    log_samples: bool = Field(True, description="write the ids of every step: about 8 bytes a sample")


class GangSettings(Settings):
    """Many ranks that live and die together."""

    workers: int = Field(1, ge=1, description="ranks; with min_workers the most")
    min_workers: int | None = Field(
        None, ge=1, description="least ranks, where the cluster has no room for more; None: exactly `workers`"
    )
    cpus_per_worker: float = Field(1, gt=0)
    gpus_per_worker: float = Field(0, ge=0)
    max_failures: int = Field(3, ge=0, description="restarts of the gang after a lost or failed rank")


class PretrainSettings(TrainSettings):
    dataset: str = Field(description="a name under datasets:")
    gang: GangSettings = GangSettings()


# ---------------------------------------------------------------- transfer


class Protocol(Settings):
    """How a model is fine-tuned and judged on any transfer dataset. Results of different protocols
    are never compared. Every choice is made on a held-out part of train."""

    name: str
    image_size: int = Field(ge=1, description="px; positions are resized when it differs from pre-training")
    train_samples: int | None = Field(
        None, ge=1, description="size of the training set, drawn evenly over classes"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of train on which the learning rate is chosen"
    )
    duration: Duration
    batch: int = Field(ge=1)
    learning_rates: tuple[float, ...] = Field(
        min_length=1, description="grid; the best on the held-out part is kept"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(name="sgd", schedule="cosine"), description="its learning_rate comes from the grid"
    )
    augment: AugmentSettings = AugmentSettings()
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _rates_differ(self) -> Protocol:
        if len(set(self.learning_rates)) < len(self.learning_rates) or min(self.learning_rates) <= 0:
            raise ValueError("learning_rates must be positive and different from each other")
        return self


class TransferSettings(Settings):
    protocol: Protocol = Field(description="a file beside the configuration, or the settings themselves")
    datasets: tuple[str, ...] = Field(min_length=1, description="names under datasets:")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    starts: tuple[Literal["pretrained", "scratch"], ...] = Field(("pretrained", "scratch"), min_length=1)


# ---------------------------------------------------------------- the run


class FanoutSettings(Settings):
    cpus_per_job: float = Field(1, gt=0)
    gpus_per_job: float = Field(0, ge=0)
    retries: int = Field(2, ge=0, description="of a job that failed in a way that a retry can help")


class ClusterSettings(Settings):
    address: str | None = Field(None, description="of a running Ray cluster; None: one is started here")
    wait_s: float = Field(60, ge=0, description="for nodes to join a cluster that is too small, seconds")


class TrackingSettings(Settings):
    enabled: bool = True
    uri: str | None = Field(None, description="None: SQLite beside the run, ROOT/mlflow.db")
    experiment: str = "vitline"


class RunConfig(Settings):
    """The whole of one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also its directory's name")
    root: str = Field("runs", description="directory that holds the runs")
    seed: int = Field(0, ge=0)
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    pretrain: PretrainSettings
    transfer: TransferSettings
    fanout: FanoutSettings = FanoutSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _datasets_exist(self) -> RunConfig:
        for where, name in [
            ("pretrain.dataset", self.pretrain.dataset),
            *[("transfer.datasets", name) for name in self.transfer.datasets],
        ]:
            if name not in self.datasets:
                known = ", ".join(sorted(self.datasets))
                raise ValueError(f"{where} names {name!r}, which is not under datasets: ({known})")
        return self


# ---------------------------------------------------------------- what one worker does


class DataView(Settings):
    """A part of one split of a prepared dataset.

    `samples` draws a subset evenly over classes; `held_out` cuts off that share of what is left,
    evenly over classes too; `part` says which side of the cut this view is. Both draws depend on
    `seed`, the split's fingerprint and nothing else.
    """

    path: str = Field(description="the dataset's directory")
    split: Literal["train", "test"]
    samples: int | None = None
    held_out: float = 0.0
    part: Literal["all", "kept", "held_out"] = "all"
    seed: int = 0
    exclude: str | None = Field(
        None, description="file of samples that are left out first, as `vitline data duplicates` writes it"
    )


class DataMixture(Settings):
    """Several views at once, each as often as its weight says, in one order."""

    parts: tuple[DataView, ...] = Field(min_length=1)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="one a part, in any unit")

    @model_validator(mode="after")
    def _one_weight_each(self) -> DataMixture:
        if len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.weights)} weights for {len(self.parts)} parts")
        return self


class TrainJob(Settings):
    """One training: read by pipeline/train/worker.py from job.json."""

    kind: Literal["train"] = "train"
    data: DataView
    validate_on: DataView | None = Field(None, description="scored once, after the last step")
    settings: TrainSettings
    start: str | None = Field(
        None, description="weights file to start from, relative to the run; None: scratch"
    )
    seed: int


class EvaluateJob(Settings):
    """One scoring of a trained model; opens a test split."""

    kind: Literal["evaluate"] = "evaluate"
    data: DataView
    weights: str = Field(description="weights file, relative to the run")
    image_size: int
    augment: AugmentSettings
    batch: int = 256
    threads: int = 1

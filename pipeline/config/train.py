"""One training: network, optimizer, engine, checkpoints, health."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Duration, Settings, to_steps
from pipeline.config.checkpoint import CheckpointSettings
from pipeline.config.engine import EngineSettings
from pipeline.config.profiling import ProfileSettings
from pipeline.config.reading import AugmentSettings, OrderSettings


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


class HealthSettings(Settings):
    """What happens when a training goes wrong."""

    loss_not_finite: Literal["stop", "skip", "rewind"] = Field(
        "stop",
        description="skip: leave the update out, go on; rewind: that, and skips_in_a_row of them go back to"
        " the last checkpoint and leave out data instead of ending it",
    )
    skips_in_a_row: int = Field(3, ge=1, description="updates left out one after the other that end it")
    rewinds: int | None = Field(
        None, ge=1, description="rewind only: going back more often than this ends it; None: 3"
    )
    skip_window: Duration | None = Field(
        None,
        description="rewind only: how much data before the fault is left out; None: all since the checkpoint",
    )
    spike: float | None = Field(
        None, gt=0, description="warn of a loss so many deviations above its recent mean; None: never"
    )
    stall_s: float = Field(300, gt=0, description="without a step: name the rank, dump Python stacks")

    @model_validator(mode="after")
    def _settings_act(self) -> HealthSettings:
        for name in ("rewinds", "skip_window"):
            if getattr(self, name) is not None and self.loss_not_finite != "rewind":
                raise ValueError(f"{name} has no effect on loss_not_finite {self.loss_not_finite!r}")
        return self


class MaskedPatchSettings(Settings):
    """Masked patch prediction: what is hidden and what is asked (ViT, Section 4.6 and Appendix B.1.2)."""

    target: Literal["mean_colour", "thumbnail", "pixels"] = Field(
        "mean_colour",
        description="of each hidden patch: its mean colour of 512; those of 4×4 parts; all its pixels",
    )
    corrupted: float = Field(0.5, gt=0, le=1, description="share of an image's patches")
    masked: float = Field(0.8, ge=0, le=1, description="of those: replaced by the mask embedding")
    swapped: float = Field(
        0.1, ge=0, le=1, description="of those: replaced by another patch of the image; the rest is kept"
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> MaskedPatchSettings:
        if self.masked + self.swapped > 1:
            raise ValueError(f"masked {self.masked} and swapped {self.swapped} are more than all; lower one")
        return self


class ValidationSettings(Settings):
    """What is scored on held-out data, on the way and after the last step; training is not changed."""

    every: Duration | None = Field(None, description="None: only after the last step")
    few_shot: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (),
        description="images of each class, as [1, 5]: ridge regression on frozen features, mean of 3 draws",
    )
    knn: int | None = Field(None, ge=1, description="nearest neighbours that vote, on frozen features")
    bank: int = Field(
        10_000, ge=1, description="few_shot and knn: training images that they know, evenly over classes"
    )

    @model_validator(mode="after")
    def _settings_act(self) -> ValidationSettings:
        if self.bank != 10_000 and not self.few_shot and self.knn is None:
            raise ValueError("bank has no effect without few_shot or knn")
        return self


class TrainSettings(Settings):
    """One training, whatever it is for."""

    model: ModelSettings
    image_size: int = Field(224, ge=1, description="px, square")
    duration: Duration
    batch: int = Field(ge=1, description="samples in a step, over all ranks")
    micro_batch: int | None = Field(
        None, ge=1, description="samples a rank holds at once; None: all of its part"
    )
    objective: Literal["classification", "masked_patches"] = Field(
        "classification", description="masked_patches: self-supervised, reads no label"
    )
    masked_patches: MaskedPatchSettings = MaskedPatchSettings()
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
    validation: ValidationSettings = ValidationSettings()
    profile: ProfileSettings = ProfileSettings()
    threads: int = Field(1, ge=1, description="decoding threads in a rank")
    bad_samples: float = Field(0.001, ge=0, le=1, description="share that may fail to decode; at least 1")
    log_every: Duration = Field("10 steps", description="between two progress events")
    log_samples: bool = Field(True, description="write the ids of every step: about 8 bytes a sample")

    @model_validator(mode="after")
    def _profiled_steps_come(self) -> TrainSettings:
        """Of a duration in epochs only the worker knows the steps (pipeline/train/plan.py)."""
        steps = None if "epoch" in self.duration else to_steps(self.duration, batch=self.batch, samples=0)
        if steps is not None and (beyond := [step for step in self.profile.steps if step > steps]):
            raise ValueError(f"profile.steps has {beyond[0]}, and the training {steps} steps; choose earlier")
        return self

    @model_validator(mode="after")
    def _best_can_be_judged(self) -> TrainSettings:
        best = self.checkpoint.keep_best
        if best is not None and self.validation.every is None:
            raise ValueError(
                "checkpoint.keep_best has no effect without validations on the way; set validation.every"
            )
        if best is not None and self.average is not None:
            raise ValueError(
                "checkpoint.keep_best with average: validations on the way score the weights of"
                " the step, not their average; leave one out"
            )
        if best == "top1" and self.objective == "masked_patches":
            raise ValueError(
                "checkpoint.keep_best: top1 with objective masked_patches, which reads no label; use loss"
            )
        return self

    @model_validator(mode="after")
    def _objective_reads_them(self) -> TrainSettings:
        if self.objective == "classification":
            if self.masked_patches != MaskedPatchSettings():
                raise ValueError("masked_patches has no effect without objective: masked_patches")
            return self
        without_effect = {
            "loss": self.loss != "softmax",
            "label_smoothing": self.label_smoothing > 0,
            "augment.mixup": self.augment.mixup > 0,
            "augment.cutmix": self.augment.cutmix > 0,
            "model.representation": self.model.representation,
            "validation.few_shot": bool(self.validation.few_shot),
            "validation.knn": self.validation.knn is not None,
            "model.options.head_bias": "head_bias" in self.model.options,
        }
        if found := [name for name, given in without_effect.items() if given]:
            raise ValueError(
                f"{', '.join(found)} set with objective masked_patches, which has neither labels nor a head "
                "for them; leave it out"
            )
        return self


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
    """The long training. An epoch of a mixture is as many samples as its datasets have together."""

    dataset: str | None = Field(None, description="a name under datasets:; or `mixture`")
    mixture: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        min_length=2,
        description="several names under datasets: → weight, in any unit: each dataset gives that share of"
        " every batch, and classes of the same name are one class",
    )
    exclude: dict[str, str] = Field(
        {},
        description="dataset → file of samples that are left out, as `vitline data duplicates --exclude`"
        " writes it",
    )
    start: str | None = Field(
        None,
        description="weights file to begin from, as vitline exports it; the head too where the classes are as"
        " many. None: drawn from the seed",
    )
    gang: GangSettings = GangSettings()

    @property
    def named_by(self) -> str:
        """The setting that names the data, for messages."""
        return "pretrain.dataset" if self.mixture is None else "pretrain.mixture"

    @property
    def shares(self) -> dict[str, float]:
        """Dataset → weight, by name: the order in which a mapping was written has no meaning."""
        weights = {str(self.dataset): 1.0} if self.mixture is None else self.mixture
        return dict(sorted(weights.items()))

    @model_validator(mode="after")
    def _one_way_to_name_data(self) -> PretrainSettings:
        if (self.dataset is None) == (self.mixture is None):
            found = "neither is given" if self.dataset is None else f"dataset is {self.dataset!r} too"
            raise ValueError(f"exactly one of dataset and mixture, but {found}; set the other to null")
        if other := sorted(self.exclude.keys() - self.shares.keys()):
            raise ValueError(f"exclude names {other[0]!r}, which is not among {', '.join(self.shares)}")
        return self

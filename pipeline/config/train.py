"""One training: network, optimizer, engine, checkpoints, health."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Duration, Settings, to_steps
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

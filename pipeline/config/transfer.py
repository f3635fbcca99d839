"""How models are judged on other datasets: by fine-tuning, or by a probe of what they have learned.

A protocol is a file below configs/transfer/. Its `kind` says which settings it has:

    finetune   all parameters are trained; the learning rate is chosen on a held-out part of train
    few_shot   ridge regression, in closed form, on a few images of each class
    knn        vote of the nearest training images
    linear     logistic regression; its penalty is chosen on a held-out part of train

The last three train nothing inside the network. Results of different protocols are never compared.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.config.base import Duration, Settings, to_steps
from pipeline.config.reading import AugmentSettings
from pipeline.config.train import OptimizerSettings


class Protocol(Settings):
    """What every protocol has. Every choice is made on a held-out part of train."""

    name: str
    image_size: int = Field(ge=1, description="px; positions are resized when it differs from pre-training")
    augment: AugmentSettings = AugmentSettings()
    threads: int = Field(1, ge=1)
    groups: dict[str, tuple[str, ...]] = Field(
        {}, description="group → datasets; the comparison shows the mean of each group, and of these means"
    )

    @model_validator(mode="after")
    def _one_group_each(self) -> Protocol:
        names = [name for group in self.groups.values() for name in group]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{twice[0]} is in two groups")
        return self


class DatasetProtocol(Settings):
    """What a fine-tuning protocol does otherwise on one dataset; None: as on all others."""

    image_size: int | None = Field(None, ge=1, description="px")
    train_samples: int | None = Field(None, ge=1)
    held_out: float | None = Field(None, gt=0, lt=1)
    duration: Duration | None = None
    warmup: Duration | None = Field(None, description="takes the place of optimizer.warmup")
    learning_rates: tuple[float, ...] | None = Field(None, min_length=1)


class FinetuneProtocol(Protocol):
    """All parameters are trained, from the pre-trained weights or from scratch."""

    kind: Literal["finetune"] = "finetune"
    train_samples: int | None = Field(
        None, ge=1, description="size of the training set, drawn evenly over classes"
    )
    held_out: float = Field(
        0.2, gt=0, lt=1, description="share of train on which the learning rate is chosen"
    )
    duration: Duration
    batch: int = Field(ge=1)
    micro_batch: int | None = Field(
        None, ge=1, description="samples a device holds at once; None: all of the batch"
    )
    precision: Literal["float32", "bf16"] = Field("float32", description="of the training")
    average: float | None = Field(
        None, ge=0, lt=1, description="decay of a Polyak average, which is then what is judged; None: none"
    )
    learning_rates: tuple[float, ...] = Field(
        min_length=1, description="grid; the best on the held-out part is kept"
    )
    optimizer: OptimizerSettings = Field(
        OptimizerSettings(name="sgd", schedule="cosine"), description="its learning_rate comes from the grid"
    )
    per_dataset: dict[str, DatasetProtocol] = Field(
        {}, description="dataset → what differs on it; when given, every transfer dataset must be named"
    )

    @model_validator(mode="after")
    def _can_be_done(self) -> FinetuneProtocol:
        for name in self.per_dataset:
            try:
                _check_training(self.on(name))
            except ValueError as error:
                raise ValueError(f"on {name}: {error}") from None
        _check_training(self)
        return self

    def on(self, dataset: str) -> FinetuneProtocol:
        """The protocol on one dataset: its own settings in place, and none for other datasets."""
        own = self.per_dataset.get(dataset, DatasetProtocol())
        changes: dict[str, Any] = {
            key: value for key in type(own).model_fields if (value := getattr(own, key)) is not None
        }
        if "warmup" in changes:
            changes["optimizer"] = self.optimizer.model_copy(update={"warmup": changes.pop("warmup")})
        return self.model_copy(update={**changes, "per_dataset": {}})


def _check_training(protocol: FinetuneProtocol) -> None:
    rates = protocol.learning_rates
    if len(set(rates)) < len(rates) or min(rates) <= 0:
        raise ValueError("learning_rates must be positive and different from each other")
    if protocol.micro_batch is not None and protocol.batch % protocol.micro_batch:
        raise ValueError(f"batch {protocol.batch} is no multiple of micro_batch {protocol.micro_batch}")
    warmup = protocol.optimizer.warmup
    # Epochs have no length before the data is there; the training itself checks those.
    if "step" in protocol.duration and "step" in warmup:
        steps, first = (to_steps(d, batch=1, samples=1) for d in (protocol.duration, warmup))
        if first > steps:
            raise ValueError(f"a warm-up of {first} steps in a training of {steps}")


class FewShotProtocol(Protocol):
    """Ridge regression to ±1 targets on a few images of each class; the seed draws them."""

    kind: Literal["few_shot"]
    shots: int = Field(ge=1, description="training images of each class")
    l2: float = Field(1024.0, gt=0, description="penalty; fixed, as there is nothing to choose it on")


class KnnProtocol(Protocol):
    """Weighted vote of the nearest training images, by the cosine of their features."""

    kind: Literal["knn"]
    train_samples: int | None = Field(None, ge=1, description="drawn evenly over classes; None: all")
    neighbours: int = Field(20, ge=1)
    temperature: float = Field(0.07, gt=0, description="a vote weighs exp(cosine ÷ temperature)")


class LinearProtocol(Protocol):
    """Multinomial logistic regression on standardised features."""

    kind: Literal["linear"]
    train_samples: int | None = Field(None, ge=1, description="drawn evenly over classes; None: all")
    held_out: float = Field(0.2, gt=0, lt=1, description="share of train on which l2 is chosen")
    l2: tuple[float, ...] = Field(
        (1e-6, 1e-4, 1e-2, 1.0), min_length=1, description="grid of penalties; the best held out is kept"
    )

    @model_validator(mode="after")
    def _penalties_differ(self) -> LinearProtocol:
        if len(set(self.l2)) < len(self.l2) or min(self.l2) <= 0:
            raise ValueError("l2 must be positive and different from each other")
        return self


ProbeProtocol = FewShotProtocol | KnnProtocol | LinearProtocol


def _kind(value: Any) -> str:
    kind = value.get("kind", "finetune") if isinstance(value, dict) else getattr(value, "kind", None)
    return str(kind)


AnyProtocol = Annotated[
    Annotated[FinetuneProtocol, Tag("finetune")]
    | Annotated[FewShotProtocol, Tag("few_shot")]
    | Annotated[KnnProtocol, Tag("knn")]
    | Annotated[LinearProtocol, Tag("linear")],
    Discriminator(_kind),
]


class TransferSettings(Settings):
    protocol: AnyProtocol = Field(description="a file beside the configuration, or the settings themselves")
    datasets: tuple[str, ...] = Field(min_length=1, description="names under datasets:")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    starts: tuple[Literal["pretrained", "scratch"], ...] = Field(("pretrained", "scratch"), min_length=1)

    @model_validator(mode="after")
    def _protocol_fits(self) -> TransferSettings:
        protocol = self.protocol
        own = getattr(protocol, "per_dataset", {})
        grouped = {name for group in protocol.groups.values() for name in group}
        for name in self.datasets:
            if own and name not in own:
                raise ValueError(
                    f"protocol {protocol.name} has no settings for {name}, only for {', '.join(own)}; "
                    f"protocol.per_dataset.{name}={{}} takes those that it has for all"
                )
            if grouped and name not in grouped:
                raise ValueError(f"{name} is in no group of protocol {protocol.name}")
        whole = isinstance(protocol, KnnProtocol | LinearProtocol) and protocol.train_samples is None
        if whole and len(self.seeds) > 1:
            raise ValueError(
                f"seeds {list(self.seeds)}: {protocol.kind} on all of train draws nothing, so they would "
                "be one result counted several times; set transfer.seeds=[0] or protocol.train_samples"
            )
        return self

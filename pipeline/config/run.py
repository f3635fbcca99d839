"""The whole of one run, and where it runs."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import Settings
from pipeline.config.datasets import DatasetSettings, WebdatasetSource
from pipeline.config.retrain import RetrainSettings
from pipeline.config.train import PretrainSettings
from pipeline.config.transfer import TransferSettings


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


class ReportSettings(Settings):
    """What report.html shows."""

    images: bool = Field(
        True,
        description="show images: the hardest of the test splits, some of train, what attention looks at; "
        "false where they must not leave their store",
    )


class RunConfig(Settings):
    """The whole of one run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="also its directory's name")
    root: str = Field("runs", description="directory that holds the runs, seen by all nodes of the cluster")
    remote: str | None = Field(
        None,
        description="URL (s3, gs, a mounted path) where the state of the run is kept too, so that any "
        "machine goes on with it, with a `root` of its own; None: in root alone",
    )
    seed: int = Field(0, ge=0)
    datasets: dict[str, DatasetSettings] = Field(min_length=1)
    pretrain: PretrainSettings
    transfer: TransferSettings
    fanout: FanoutSettings = FanoutSettings()
    cluster: ClusterSettings = ClusterSettings()
    tracking: TrackingSettings = TrackingSettings()
    report: ReportSettings = ReportSettings()
    retrain: RetrainSettings | None = Field(None, description="how the run repeats; None: it does not")

    @model_validator(mode="after")
    def _root_is_here(self) -> RunConfig:
        if "://" in self.root:
            raise ValueError(
                f"root is {self.root!r}: ranks work in a directory; set remote={self.root}, where the state "
                "of the run is kept then, and root to a directory that all nodes see"
            )
        return self

    @model_validator(mode="after")
    def _datasets_exist(self) -> RunConfig:
        for where, name in [
            *[(self.pretrain.named_by, name) for name in self.pretrain.shares],
            *[("transfer.datasets", name) for name in self.transfer.datasets],
        ]:
            if name not in self.datasets:
                known = ", ".join(sorted(self.datasets))
                raise ValueError(f"{where} names {name!r}, which is not under datasets: ({known})")
        return self

    @model_validator(mode="after")
    def _can_repeat(self) -> RunConfig:
        if self.retrain is None:
            return self
        if self.remote is not None:
            raise ValueError(
                "retrain keeps what it knows of champion and rounds under root: leave remote out, which is "
                "for single runs"
            )
        dataset = self.pretrain.dataset
        if not isinstance(self.datasets.get(str(dataset)), WebdatasetSource):
            raise ValueError(
                f"retrain watches shards: pretrain.dataset must be of source webdataset, {dataset!r} is not"
            )
        if "pretrained" not in self.transfer.starts:
            raise ValueError("retrain compares what pre-training gives: transfer.starts must hold pretrained")
        if not self.tracking.enabled:
            raise ValueError("retrain keeps its champion in MLflow's registry: set tracking.enabled=true")
        if other := sorted(self.retrain.gate.floors.keys() - set(self.transfer.datasets)):
            raise ValueError(f"retrain.gate.floors names {other[0]!r}, which is not in transfer.datasets")
        return self

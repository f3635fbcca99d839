"""Every setting of a run: typed, frozen, with unit and range.

One YAML file becomes one `RunConfig` (pipeline/config_io.py loads it). Unknown keys are refused.
A job's digest is made of the settings it reads, so the classes here follow the stages.

    RunConfig
    ├── datasets: NAME → one of the sources
    ├── pretrain: PretrainSettings (TrainSettings + dataset + gang)
    ├── transfer: TransferSettings (protocol, datasets, seeds, starts)
    ├── fanout, tracking, report
    ├── retrain: RetrainSettings (how it repeats by itself)
    TrainJob, EvaluateJob, ProbeJob      what one worker does; stages make these from the settings above
"""

from pipeline.config.base import (
    Duration,
    Settings,
    to_steps,
)
from pipeline.config.checkpoint import CheckpointSettings
from pipeline.config.datasets import (
    CacheSettings,
    DatasetSettings,
    DigitsSource,
    FolderSource,
    GlyphsSource,
    HuggingFaceSource,
    ParquetSource,
    SourceSettings,
    SpritesSource,
    TorchvisionSource,
    WebdatasetSource,
    WriteSettings,
)
from pipeline.config.engine import EngineSettings
from pipeline.config.profiling import ProfileSettings
from pipeline.config.reading import (
    AugmentSettings,
    DataMixture,
    DataView,
    OrderSettings,
)
from pipeline.config.retrain import (
    BudgetSettings,
    GateSettings,
    NewDataSettings,
    NotifySettings,
    RetrainSettings,
)
from pipeline.config.run import (
    ClusterSettings,
    FanoutSettings,
    ReportSettings,
    RunConfig,
    TrackingSettings,
)
from pipeline.config.train import (
    GangSettings,
    HealthSettings,
    MaskedPatchSettings,
    ModelSettings,
    OptimizerSettings,
    PretrainSettings,
    TrainSettings,
)
from pipeline.config.transfer import (
    FewShotProtocol,
    FinetuneProtocol,
    KnnProtocol,
    LinearProtocol,
    ProbeProtocol,
    Protocol,
    TransferSettings,
)
from pipeline.config.work import (
    EvaluateJob,
    ProbeJob,
    TrainJob,
)

__all__ = [
    "AugmentSettings",
    "BudgetSettings",
    "CacheSettings",
    "CheckpointSettings",
    "ClusterSettings",
    "DataMixture",
    "DataView",
    "DatasetSettings",
    "DigitsSource",
    "Duration",
    "EngineSettings",
    "EvaluateJob",
    "FanoutSettings",
    "FewShotProtocol",
    "FinetuneProtocol",
    "FolderSource",
    "GangSettings",
    "GateSettings",
    "GlyphsSource",
    "HealthSettings",
    "HuggingFaceSource",
    "KnnProtocol",
    "LinearProtocol",
    "MaskedPatchSettings",
    "ModelSettings",
    "NewDataSettings",
    "NotifySettings",
    "OptimizerSettings",
    "OrderSettings",
    "ParquetSource",
    "PretrainSettings",
    "ProbeJob",
    "ProbeProtocol",
    "ProfileSettings",
    "Protocol",
    "RetrainSettings",
    "ReportSettings",
    "RunConfig",
    "Settings",
    "SourceSettings",
    "SpritesSource",
    "TorchvisionSource",
    "TrackingSettings",
    "TrainJob",
    "TrainSettings",
    "TransferSettings",
    "WebdatasetSource",
    "WriteSettings",
    "to_steps",
]

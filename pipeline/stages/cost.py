"""How long a job of the fan-out will take, roughly: multiply-accumulates of one image × images.

Only the order matters: the longest starts first, so that no long job is left over at the end.
"""

from __future__ import annotations

from functools import cache

from model.flops import FORWARD_AND_BACKWARD, macs
from pipeline.config import FewShotProtocol, FinetuneProtocol, RunConfig, to_steps
from pipeline.graph import Planned
from pipeline.rundir import RunDir
from pipeline.stages import evaluate, finetune
from pipeline.train.network import network_of


class CostEstimate:
    """Callable: multiply-accumulates of a job whose inputs are done; 0 for what is no fan-out."""

    def __init__(self, config: RunConfig, run: RunDir) -> None:
        self._config, self._run = config, run
        # A run has few datasets and resolutions, and up to thousands of jobs.
        self._macs = cache(self._macs_of)
        self._samples = cache(self._samples_of)

    def __call__(self, item: Planned) -> float:
        job = item.job
        if job.stage not in (finetune.CHOOSE, finetune.STAGE, evaluate.STAGE):
            return 0.0
        train, test = self._samples(item.inputs["data"])
        protocol = self._config.transfer.protocol
        if not isinstance(protocol, FinetuneProtocol):
            train = protocol.shots if isinstance(protocol, FewShotProtocol) else train
            return float(self._macs(protocol.image_size) * (train + test))
        protocol = protocol.on(job.slice["dataset"])
        if job.stage == evaluate.STAGE:
            return float(self._macs(protocol.image_size) * test)
        train = min(train, protocol.train_samples or train)
        scored = 0
        if job.stage == finetune.CHOOSE:
            scored = round(train * protocol.held_out)
            train -= scored
        images = to_steps(protocol.duration, batch=protocol.batch, samples=max(1, train)) * protocol.batch
        return float(self._macs(protocol.image_size) * (FORWARD_AND_BACKWARD * images + scored))

    def _macs_of(self, image_size: int) -> int:
        # The number of classes plays no part: the head is not counted.
        return macs(network_of(self._config.pretrain.model, image_size, 1000))

    def _samples_of(self, digest: str) -> tuple[int, int]:
        """Samples of train and test of a prepared dataset."""
        result = self._run.job(digest).read_result() or {}
        metrics = result.get("metrics", {})
        return int(metrics.get("data/train_samples", 0)), int(metrics.get("data/test_samples", 0))

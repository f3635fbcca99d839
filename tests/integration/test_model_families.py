"""Hybrids and BiT ResNets pre-train and fine-tune by the same worker and settings as a ViT."""

from __future__ import annotations

import pytest

from pipeline.config import (
    DataView,
    EngineSettings,
    GlyphsSource,
    ModelSettings,
    OptimizerSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.data.write import prepare
from pipeline.rundir import RunDir, write_json
from pipeline.train import worker

FAMILIES = [
    ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
    ModelSettings(name="r_vit_ti16", options={"width": 32, "depth": 1, "heads": 2, "mlp": 64}),
    ModelSettings(name="bit_r26x1"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    found = RunDir(tmp_path_factory.mktemp("families"))
    source = GlyphsSource(source="glyphs", classes=4, train_per_class=4, test_per_class=1)
    prepare(source, found.job("data").path)
    return found


def train(run: RunDir, digest: str, model: ModelSettings, start: str | None) -> dict[str, object]:
    view = DataView(path="jobs/data", split="train")
    job = TrainJob(
        data=view,
        validate_on=view,
        settings=TrainSettings(
            model=model,
            image_size=32,
            duration="2 steps",
            batch=8,
            optimizer=OptimizerSettings(learning_rate=1e-3),
            engine=EngineSettings(kind="plain", self_test=False),
        ),
        start=start,
        seed=0,
    )
    description = {
        "schema": 1,
        "digest": digest,
        "name": digest,
        "stage": "pretrain",
        "inputs": {},
        "slice": {},
    }
    write_json(run.job(digest).job, {**description, "work": job.model_dump(mode="json")})
    return worker.run(run.path, digest)


@pytest.mark.parametrize("model", FAMILIES, ids=lambda model: model.name)
def test_every_family_trains_and_is_taken_over(run: RunDir, model: ModelSettings) -> None:
    pretrained = train(run, f"pretrain-{model.name}", model, None)
    weights = run.job(f"pretrain-{model.name}").weights
    assert weights.exists()
    tuned = train(run, f"finetune-{model.name}", model, str(weights.relative_to(run.path)))
    for result in (pretrained, tuned):
        metrics = result["metrics"]
        assert isinstance(metrics, dict)
        assert 0 < metrics["train/loss"] < 10

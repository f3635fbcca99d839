"""The registered model by MLflow's own command, in a process of its own: a photo in, its class out."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.rundir import RunDir
from pipeline.tracking_registry import CHAMPION, Registry
from pipeline.train.loop import normalise
from pipeline.train.trained import load_trained, read_images

PHOTOS = sorted((Path(__file__).parents[1] / "data" / "photos" / "test").rglob("*.jpg"))[:2]
CLASSES = ["cat", "dog", "fish"]


@pytest.mark.slow
def test_mlflow_models_predict_names_photos(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    random = torch.Generator().manual_seed(0)
    network = create_model(
        "vit_ti16", num_classes=3, image_size=32, depth=1, width=48, heads=1, generator=random
    )
    torch.nn.init.normal_(network.head.weight, generator=random)
    seen = json.dumps({"image_size": 32, "evaluate": "resize", "larger": 1.0})
    header = {"classes": json.dumps(CLASSES), "preprocessing": seen}
    save_weights(weights, network.state_dict(), network.config.to_dict(), header)
    registry = Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "vitline", "photos")
    registry.move(CHAMPION, registry.register("k", RunDir(tmp_path / "run"), weights, {}, "").number)

    rows = [[base64.b64encode(photo.read_bytes()).decode()] for photo in PHOTOS]
    given, answer = tmp_path / "in.json", tmp_path / "out.json"
    given.write_text(json.dumps({"dataframe_split": {"columns": ["image"], "data": rows}}))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "--env-manager", "local"]
    command += ["--model-uri", f"models:/photos@{CHAMPION}", "--input-path", str(given)]
    command += ["--output-path", str(answer), "--content-type", "json"]
    done = subprocess.run(
        command,
        env={**os.environ, "MLFLOW_TRACKING_URI": registry.uri},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(answer.read_text())["predictions"]

    trained = load_trained(weights)
    with torch.no_grad():
        shares = trained.model(normalise(read_images(trained, PHOTOS))).softmax(1)
    assert [row["label"] for row in told] == [CLASSES[i] for i in shares.argmax(1).tolist()]
    assert [row["score"] for row in told] == pytest.approx(shares.amax(1).tolist(), rel=1e-4)

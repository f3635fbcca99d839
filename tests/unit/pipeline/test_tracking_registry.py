"""The registered model as others use it: found by its alias, fed a photo, right as our own network."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.config import AugmentSettings
from pipeline.data.augment import evaluation_pixels
from pipeline.data.decode import decode
from pipeline.errors import EnvironmentUnfit, UserError
from pipeline.rundir import RunDir
from pipeline.tracking_registry import CHAMPION, Registry

PHOTOS = Path(__file__).parents[2] / "data" / "photos"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"sqlite:///{tmp_path / 'mlflow.db'}", "vitline", "photos")


def weights_file(path: Path) -> torch.nn.Module:
    network = create_model(
        "vit_ti16", num_classes=3, image_size=32, depth=1, width=48, heads=1,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    torch.nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(1))
    how = {"image_size": 32, "evaluate": "resize", "larger": 1.0}
    header = {"classes": json.dumps(["cat", "dog", "fish"]), "preprocessing": json.dumps(how)}
    save_weights(path, network.state_dict(), network.config.to_dict(), header)
    return network.eval()


def test_a_registered_model_names_photos(registry: Registry, tmp_path: Path) -> None:
    network = weights_file(tmp_path / "weights.safetensors")
    run = RunDir(tmp_path / "run")
    version = registry.register("k1", run, tmp_path / "weights.safetensors", {"gate": "pass"}, "note")
    assert registry.register("k1", run, tmp_path / "weights.safetensors", {}, "again") == version
    registry.move(CHAMPION, version.number)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        import mlflow
        import pandas

        mlflow.set_tracking_uri(registry.uri)
        try:
            said.clear()
            served = mlflow.pyfunc.load_model(f"models:/photos@{CHAMPION}")
            # Whoever serves it would read such a thing at every start.
            assert not [warning for warning in said if "predict" in str(warning.message)]
            photo = sorted(PHOTOS.rglob("*.jpg"))[0].read_bytes()
            answer = served.predict(pandas.DataFrame({"image": [photo]}))
        finally:
            mlflow.set_tracking_uri(None)
    pixels = decode(photo)
    assert not isinstance(pixels, str)
    seen = evaluation_pixels(AugmentSettings(), pixels, 32)
    x_BCHW = (torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() - 127.5) / 127.5
    with torch.no_grad():
        shares = network(x_BCHW).softmax(1)[0]
    assert answer["label"][0] == ["cat", "dog", "fish"][int(shares.argmax())]
    assert answer["score"][0] == pytest.approx(float(shares.max()), rel=1e-5)


def test_weights_that_were_exchanged_are_refused(registry: Registry, tmp_path: Path) -> None:
    weights_file(tmp_path / "weights.safetensors")
    version = registry.register("k1", RunDir(tmp_path / "run"), tmp_path / "weights.safetensors", {}, "")
    assert (
        registry.fetch_weights(version, tmp_path / "v1").read_bytes()
        == (tmp_path / "weights.safetensors").read_bytes()
    )
    registry.tag(version.number, weights="0" * 64)
    with pytest.raises(EnvironmentUnfit, match="not those that were registered"):
        registry.fetch_weights(registry.version(version.number), tmp_path / "v1")


def test_what_is_not_there(registry: Registry) -> None:
    assert registry.at(CHAMPION) is None
    assert registry.versions() == []
    with pytest.raises(UserError, match="no version 7"):
        registry.version("7")

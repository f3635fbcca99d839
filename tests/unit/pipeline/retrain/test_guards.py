"""The gate's guards beyond accuracy, on a run with real shards and invented numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.config import GateSettings, RunConfig, WebdatasetSource
from pipeline.data.adopt import adopt
from pipeline.data.manifest import save_manifest
from pipeline.retrain.guards import Side, against_champion, leaks
from pipeline.retrain.judging import cells_of
from pipeline.rundir import read_json, write_json
from tests.helpers.shards import write_tar
from tests.helpers.synthetic_run import SyntheticRun, synthetic_config, write_synthetic_run

NAME = "test images are not trained on"


def write_shard(path: Path, *images: bytes) -> str:
    members = {f"{path.stem}-{n}.jpg": image for n, image in enumerate(images)}
    classes = {f"{path.stem}-{n}.cls": b"0" for n in range(len(images))}
    return str(write_tar(path, dict(sorted((members | classes).items()))))


def make_run(home: Path, *trained: bytes, protocol: dict[str, Any] | None = None) -> SyntheticRun:
    """A run that pre-trained on these images and tested on b"one", b"two" and b"three"."""
    plain = synthetic_config(home / "runs").model_dump(mode="json")
    train = write_shard(home / "train.tar", *trained)
    test = write_shard(home / "test.tar", b"one", b"two", b"three")
    # `classes` are named, so that a lone label is one of them.
    source = {"source": "webdataset", "classes": ["a", "b"]}
    plain["datasets"] = {
        "seen": {**source, "train": train, "test": train},
        "unseen": {**source, "train": test, "test": test},
    }
    plain["pretrain"]["dataset"] = "seen"
    plain["transfer"] |= {"datasets": ["unseen"], "seeds": [0], "starts": ["pretrained"]}
    if protocol is not None:
        plain["transfer"]["protocol"] = protocol
    config = RunConfig.model_validate(plain)
    made = write_synthetic_run(config, images=3)
    for name, settings in config.datasets.items():
        assert isinstance(settings, WebdatasetSource)
        directory = made.run.job(made.digests[f"prepare/{name}"]).path
        save_manifest(directory, adopt(settings, directory, report=lambda _: None, run=map))
    return made


def look_for_leaks(made: SyntheticRun) -> str:
    return leaks(made.run, cells_of(made.run), made.digests["pretrain"])[NAME]


@pytest.mark.parametrize("protocol", [None, {"kind": "knn", "name": "knn", "image_size": 32}])
def test_a_test_image_in_training_is_found(tmp_path: Path, protocol: dict[str, Any] | None) -> None:
    assert look_for_leaks(make_run(tmp_path / "clean", b"four", b"six", b"ten", protocol=protocol)) == ""
    # Of the same size as others, and at another place.
    made = make_run(tmp_path / "leak", b"six", b"four", b"ten", b"three", b"two", protocol=protocol)
    assert look_for_leaks(made) == "2 are, as train-3, which unseen tests on"


def side(made: SyntheticRun, ece: float | None, weights: Path) -> Side:
    cells = cells_of(made.run)
    for cell in cells:
        file = made.run.job(cell.digest).result
        result = read_json(file)
        assert result is not None
        if ece is not None:
            result["metrics"]["eval/ece"] = ece
        write_json(file, result)
    return Side(made.run, cells, weights)


def network(path: Path, depth: int) -> Path:
    made = create_model("vit_ti16", num_classes=2, image_size=32, depth=depth, width=48, heads=1)
    save_weights(path, made.state_dict(), made.config.to_dict())
    return path


def test_calibration_may_not_become_worse_by_more_than_was_said(tmp_path: Path) -> None:
    weights = network(tmp_path / "w.safetensors", 1)
    old = side(make_run(tmp_path / "old", b"a"), 0.05, weights)
    new = side(make_run(tmp_path / "new", b"b"), 0.08, weights)
    assert against_champion(new, old, GateSettings()) == {}
    assert against_champion(new, old, GateSettings(calibration_rise=0.04)) == {"calibration": ""}
    said = against_champion(new, old, GateSettings(calibration_rise=0.02))["calibration"]
    assert said == "unseen: expected calibration error 0.0800 after 0.0500, more than 0.02 above"
    # Better is no fault.
    assert against_champion(old, new, GateSettings(calibration_rise=0)) == {"calibration": ""}
    without = side(make_run(tmp_path / "without", b"c"), None, weights)
    said = against_champion(without, old, GateSettings(calibration_rise=0.02))["calibration"]
    assert said.startswith("no calibration error of unseen")


def test_an_image_may_not_take_more_work_than_was_said(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", b"a")
    small, large = (side(made, None, network(tmp_path / f"{depth}.safetensors", depth)) for depth in (1, 4))
    assert against_champion(large, small, GateSettings(slowdown=5)) == {"work for an image": ""}
    assert against_champion(small, large, GateSettings(slowdown=1)) == {"work for an image": ""}
    said = against_champion(large, small, GateSettings(slowdown=1.5))["work for an image"]
    assert said.endswith("times the multiply-accumulates of the champion's, 1.5 are allowed")
    assert 1.5 < float(said.split()[0]) < 4

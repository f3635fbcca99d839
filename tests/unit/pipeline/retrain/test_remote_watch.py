"""A watched prefix of a store (moto's S3 server): what a tick sees there, and the run that it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.config import RunConfig, WebdatasetSource
from pipeline.retrain import freshness
from pipeline.retrain.opening import Scene, find_data, open_round
from pipeline.retrain.rounds import config_of, reuse
from pipeline.retrain.state import Round, State
from pipeline.tracking_registry import Registry
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.shards import write_tar
from tests.helpers.synthetic_run import synthetic_config


class NoChampion:
    """A registry in which nothing is registered yet."""

    def at(self, alias: str) -> None:
        return None


def scene_of(home: Path) -> Scene:
    plain = synthetic_config(home / "runs").model_dump(mode="json")
    plain["datasets"]["glyphs"] = {"source": "webdataset", "train": "unused.tar", "test": "unused.tar"}
    plain["retrain"] = {"data": {"watch": "s3://watched/in/", "min_new_samples": 3, "settle_s": 60}}
    state = State(home / "state")
    far = 4e9  # after whatever the server calls now
    return Scene(RunConfig.model_validate(plain), state, cast(Registry, NoChampion()), home, lambda: far)


def put(store: Any, home: Path, name: str, samples: int) -> None:
    members = {f"{name}-{n}.{kind}": b"0" for n in range(samples) for kind in ("jpg", "cls")}
    store.put(str(write_tar(home / "out.tar", members)), f"s3://watched/in/{name}.tar")


def test_new_shards_under_a_prefix_make_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as url:
        store = empty_bucket(monkeypatch, url, "watched")
        scene = scene_of(tmp_path)
        assert open_round(scene, 1, None) == "no shard in s3://watched/in/"
        put(store, tmp_path, "a", 2)
        assert open_round(scene, 1, None) == "2 new samples, fewer than 3"
        put(store, tmp_path, "b", 1)
        (tmp_path / "half").write_bytes(b"\0" * 100)
        store.put(str(tmp_path / "half"), "s3://watched/in/half.tar")
        opened = open_round(scene, 1, None)
        assert isinstance(opened, Round)
        assert [(shard.name, shard.samples) for shard in opened.shards] == [("a.tar", 2), ("b.tar", 1)]
        assert opened.reason.startswith("3 new samples; not counted: half.tar cannot be used")
        config = config_of(scene.config, opened, scene.state, tmp_path)
        source = config.datasets["glyphs"]
        assert isinstance(source, WebdatasetSource)
        assert source.train == "s3://watched/in/{a.tar,b.tar}"
        # What it would begin with is planned, with the store's own word on the shards.
        assert reuse(config, scene.state, scene.state.rounds()) == 0
        _is_read_once(scene, store, tmp_path, monkeypatch)


def _is_read_once(scene: Scene, store: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that was looked at is not fetched again; one with other bytes is."""
    fetched: list[str] = []
    real = freshness.local_copy

    def counted(name: str, directory: Path) -> Any:
        fetched.append(name)
        return real(name, directory)

    monkeypatch.setattr(freshness, "local_copy", counted)
    before = find_data(scene)
    assert fetched == ["s3://watched/in/half.tar"]
    put(store, home, "b", 40)
    after = find_data(scene)
    assert fetched[1:] == ["s3://watched/in/b.tar", "s3://watched/in/half.tar"]
    assert before.digest != after.digest
    assert [shard.samples for shard in after.shards] == [2, 40]

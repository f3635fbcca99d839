"""Scheduled retraining for tests: real state machine, lease and SQLite registry; trainings are invented."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from model.weights.files import save_weights
from model.zoo import create_model
from pipeline.config import RunConfig
from pipeline.retrain.opening import Scene
from pipeline.retrain.state import State
from pipeline.retrain.tick import Answer, RunState, Ticker
from pipeline.rundir import RunDir
from pipeline.tracking_registry import CHAMPION, Registry
from tests.helpers.shards import write_tar
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

DAY_S = 86_400.0
GOOD, BAD = 0.90, 0.55


def drop(directory: Path, day: int, samples: int = 8) -> None:
    """A shard of `samples` that arrived on `day` and has settled."""
    members: dict[str, bytes] = {}
    for n in range(samples):
        members |= {f"{day}-{n}.jpg": b"pixels", f"{day}-{n}.cls": b"0"}
    write_tar(directory / f"day-{day:02d}.tar", members, day * DAY_S)


class Trainer:
    """Finishes a run as soon as it is looked at; accuracy by the newest data that it saw."""

    def __init__(self, accuracy: Callable[[str], float]) -> None:
        self.accuracy = accuracy
        self.started: list[str] = []
        self.configs: list[RunConfig] = []
        self.stopped: list[str] = []
        self.answers: list[RunState] = []
        self.before_start: Callable[[], None] = lambda: None

    def start(self, config: RunConfig, run: RunDir) -> dict[str, Any]:
        self.before_start()
        self.started.append(run.path.name)
        self.configs.append(config)
        pattern = config.datasets["glyphs"].train  # type: ignore[union-attr]
        share = self.accuracy(str(pattern))
        # What was reused, or an earlier attempt left, is written anew.
        for found in run.jobs.iterdir():
            found.unlink() if found.is_symlink() else shutil.rmtree(found)
        made = write_synthetic_run(config, accuracy=lambda dataset, start, seed: share, images=2000)
        network = create_model("vit_ti16", num_classes=2, image_size=32, depth=1, width=48, heads=1)
        header = {"classes": '["a", "b"]', "preprocessing": "{}"}
        weights = run.job(made.digests["pretrain"]).weights
        save_weights(weights, network.state_dict(), network.config.to_dict(), header)
        return {"since": 0}

    def look(self, run: RunDir, record: dict[str, Any]) -> RunState:
        return self.answers.pop(0) if self.answers else RunState(running=False, exit_code=0)

    def stop(self, run: RunDir, record: dict[str, Any]) -> None:
        self.stopped.append(run.path.name)


class Month:
    def __init__(self, home: Path, **retrain: Any) -> None:
        self.day = 0
        self.watch = home / "incoming"
        self.watch.mkdir()
        base = synthetic_config(home / "runs").model_dump(mode="json")
        base["datasets"]["glyphs"] = {"source": "webdataset", "train": "unused.tar", "test": "unused.tar"}
        base["retrain"] = {
            "data": {"watch": str(self.watch), "min_new_samples": 8, "settle_s": 3600},
            # Where trainings are invented, so are their images.
            "gate": {"margin_pp": 2.0, "disjoint": False},
            **retrain,
        }
        self.config = RunConfig.model_validate(base)
        self.registry = Registry(f"sqlite:///{home / 'mlflow.db'}", "vitline", "classifier")
        self.state = State(home / "runs" / "synthetic" / "retrain")
        self.trainer = Trainer(lambda pattern: GOOD)
        self.scene = Scene(self.config, self.state, self.registry, home, lambda: self.day * DAY_S)

    def ticker(self) -> Ticker:
        return Ticker(self.scene, self.trainer)

    def tick(self, **options: Any) -> Answer:
        return self.ticker().tick(**options)

    def dies_in_the_middle(self) -> int:
        """A tick that dies while it holds the lease and the round is begun; its process id."""
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # the threads of a pool are not there after a fork
            self.trainer.before_start = lambda: os._exit(9)
            self.tick()
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        return pid

    def champion(self) -> str | None:
        version = self.registry.at(CHAMPION)
        return version.number if version else None

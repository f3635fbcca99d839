"""A loss that is not finite on one rank sends all of them back, and what was left out stays left out after
a kill and on another number of ranks and another ZeRO stage."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import (
    CheckpointSettings,
    DataView,
    EngineSettings,
    HealthSettings,
    ModelSettings,
    OptimizerSettings,
    OrderSettings,
    TrainJob,
    TrainSettings,
)
from pipeline.events import read_events
from pipeline.rundir import JobDir, write_json
from pipeline.train.samplelog import read_sample_log
from tests.helpers.train_jobs import write_glyphs, write_train_job

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("rewinding_ranks.py")
BAD = "5,6"


@pytest.fixture(scope="module")
def add_job(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], JobDir]:
    run = tmp_path_factory.mktemp("run")
    write_glyphs(run / "data" / "glyphs")

    def add(digest: str, stage: int) -> JobDir:
        settings = TrainSettings(
            model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
            image_size=16,
            duration="12 steps",
            batch=12,
            average=0.9,
            optimizer=OptimizerSettings(warmup="2 steps"),
            order=OrderSettings(lanes=3),
            engine=EngineSettings(stage=stage, self_test=False),  # type: ignore[arg-type]
            checkpoint=CheckpointSettings(every="4 steps"),
            health=HealthSettings(loss_not_finite="rewind", skips_in_a_row=2),
            log_every="1 steps",
        )
        view = DataView(path="data/glyphs", split="train")
        return write_train_job(run, digest, TrainJob(data=view, settings=settings, seed=1))

    return add


def do(job: JobDir, ranks: int, deadly: int = 0) -> list[int]:
    """Exit codes of the ranks; those that outlive a killed one are ended."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), str(job.job), BAD, str(deadly)],
            env={**os.environ, **ours, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    try:
        return [process.wait(120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def losses(job: JobDir) -> list[float]:
    events = [event for event in read_events(job.events)[0] if event["event"] == "progress"]
    return [loss for _, loss in sorted({event["step"]: event["loss"] for event in events}.items())]


@pytest.mark.slow
def test_left_out_data_stays_left_out_on_other_ranks(add_job: Callable[[str, int], JobDir]) -> None:
    whole, cut = add_job("whole", 1), add_job("cut", 1)
    assert do(whole, 2) == [0, 0]
    rewinds = [event for event in read_events(whole.events)[0] if event["event"] == "rewind"]
    assert [(e["step"], e["failed"], e["first"], e["end"]) for e in rewinds] == [(4, 7, 4, 7)]
    assert list(read_sample_log(whole)) == list(range(1, 13))

    # Seven steps, back to step 4, one step more; then both ranks die before a checkpoint knows the window.
    assert do(cut, 2, deadly=9) == [-9, -9]
    description = json.loads(cut.job.read_text())
    description["work"]["settings"]["engine"]["stage"] = 3
    write_json(cut.job, description)
    assert do(cut, 1) == [0]
    assert read_sample_log(cut) == read_sample_log(whole)
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)

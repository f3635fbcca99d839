"""float16 in the loop: an overflow is no fault, is counted apart, and its scale is reported and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config import EngineSettings
from pipeline.errors import EnvironmentUnfit, TrainingError
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train import engine as engines
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.plain import PlainEngine
from pipeline.train.worker import run
from pipeline.train.world import World

Add = Callable[..., JobDir]
PLAIN = EngineSettings(kind="plain", self_test=False)


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The plain engine leaves out its first four steps; whether as overflows, the list's one value says."""
    as_overflows = [True]
    calls = [0]
    step = PlainEngine.step

    def left_out_at_first(self: PlainEngine, rate: float, *, finite: bool = True) -> bool:
        calls[0] += 1
        self.overflowed = calls[0] <= 4 and as_overflows[0]
        if calls[0] > 4:
            return step(self, rate, finite=finite)
        self.optimizer.zero_grad()
        return False

    monkeypatch.setattr(PlainEngine, "step", left_out_at_first)
    monkeypatch.setattr(PlainEngine, "loss_scaler", lambda self: {"cur_scale": 2.0 ** max(12, 16 - calls[0])})
    return as_overflows


def test_overflows_are_counted_apart_and_end_nothing(
    run_dir: Path, add_job: Add, overflowing: list[bool]
) -> None:
    job = add_job(engine=PLAIN)
    run(run_dir, "aaaa", device="cpu")
    progress = [e for e in read_events(job.events)[0] if e["event"] == "progress"]
    assert [e["overflows"] for e in progress[:6]] == [1, 2, 3, 4, 4, 4]
    assert [e["loss_scale"] for e in progress[:5]] == [2.0**15, 2.0**14, 2.0**13, 2.0**12, 2.0**12]
    assert {e["skipped"] for e in progress} == {0}
    record = complete_checkpoints(job.checkpoints)[0].record
    assert record["loss_scaler"] == {"cur_scale": 2.0**12}
    assert record["updates"] == record["step"] - 4


def test_the_same_steps_left_out_as_faults_end_the_training(
    run_dir: Path, add_job: Add, overflowing: list[bool]
) -> None:
    overflowing[0] = False
    add_job(engine=PLAIN)
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row, the last is step 3"):
        run(run_dir, "aaaa", device="cpu")


def test_a_device_without_float16_is_refused_by_name(
    cpu_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's own answer is a bare ValueError, "Type fp16 is not supported on your device."."""
    zero = engines._import_zero()
    accelerator = zero.deepspeed.accelerator.get_accelerator()
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda: None)  # what it says of most processors
    with pytest.raises(EnvironmentUnfit, match="fp16, which DeepSpeed does not support on this cpu"):
        zero.check_float16(cpu_world)


@pytest.fixture
def cpu_world() -> World:
    return World(0, 1, 0, torch.device("cpu"))

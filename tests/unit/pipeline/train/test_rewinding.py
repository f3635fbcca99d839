"""A training that breaks on certain batches goes back, leaves them out, and stays exact after any resume."""

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.config import DataView, HealthSettings, OrderSettings
from pipeline.data import assemble
from pipeline.data.view import open_view
from pipeline.errors import StopRequested, TrainingError
from pipeline.events import Event, read_events
from pipeline.rundir import JobDir
from pipeline.train import loop
from pipeline.train.checkpoint import complete_checkpoints
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]
REWIND = HealthSettings(loss_not_finite="rewind", skips_in_a_row=2)


@pytest.fixture
def add_job(add_job: Add) -> Add:
    """Few lanes, so that epochs of this small dataset differ."""
    return partial(add_job, order=OrderSettings(lanes=3))


@pytest.fixture
def sound(run_dir: Path, add_job: Add) -> dict[int, list[int]]:
    """Batch number → samples, of the same training where nothing breaks."""
    job = add_job("sound", duration="24 steps")
    run(run_dir, "sound", device="cpu")
    return {step - 1: ids for step, ids in read_sample_log(job).items()}


@pytest.fixture
def poison(sound: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int]], None]:
    """Make the loss of these batches not finite, whichever step takes them."""
    original = loop.forward_and_backward

    def replace(batches: set[int]) -> None:
        bad = [sound[batch] for batch in batches]

        def broken(training: Any, batch: Any) -> torch.Tensor:
            if batch.ids.tolist() in bad:
                batch.weights.fill_(math.nan)
            return original(training, batch)

        monkeypatch.setattr(loop, "forward_and_backward", broken)

    return replace


def of_kind(job: JobDir, kind: str) -> list[Event]:
    return [event for event in read_events(job.events)[0] if event["event"] == kind]


def losses(job: JobDir) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in of_kind(job, "progress")}


def batches(job: JobDir, sound: dict[int, list[int]]) -> list[int]:
    """Number of the batch that each step used in the end."""
    return [list(sound.values()).index(ids) for ids in read_sample_log(job).values()]


def test_it_goes_back_and_leaves_out_the_data_since_the_checkpoint(
    run_dir: Path, add_job: Add, sound: dict[int, list[int]], poison: Callable[[set[int]], None]
) -> None:
    poison({5, 6})
    job = add_job(health=REWIND, average=0.9)
    run(run_dir, "aaaa", device="cpu")
    # Saved after step 4, so batches 4, 5 and 6 are left out.
    assert batches(job, sound) == [0, 1, 2, 3, *range(7, 15)]
    [event] = of_kind(job, "rewind")
    assert {k: event[k] for k in ("step", "failed", "first", "end")} == {
        "step": 4,
        "failed": 7,
        "first": 4,
        "end": 7,
    }
    [warning] = of_kind(job, "warning")
    assert "the last is step 7: back to step 4, batches 4 to 6 are left out" in warning["message"]
    record = complete_checkpoints(job.checkpoints)[0].record
    assert record["loader"]["skipped"] == [[4, 7]]
    assert record["position"] == 15 * 12
    assert record["rewinds"] == json.loads(job.skipped.read_text())["rewinds"]
    assert all(math.isfinite(loss) for loss in losses(job).values())
    assert '{"rewind":4,"left_out":[4,7]}' in job.samples(1, 0).read_text()


def test_what_follows_equals_a_training_that_never_saw_the_data(
    run_dir: Path, add_job: Add, poison: Callable[[set[int]], None]
) -> None:
    """The first training breaks; the second has the window in its file from the start."""
    poison({5, 6})
    first = add_job("first", health=REWIND)
    run(run_dir, "first", device="cpu")
    poison(set())
    second = add_job("second", health=REWIND)
    second.skipped.write_bytes(first.skipped.read_bytes())
    run(run_dir, "second", device="cpu")
    assert not of_kind(second, "rewind")
    assert losses(first) == losses(second)
    assert read_sample_log(first) == read_sample_log(second)


@pytest.mark.parametrize("stop", [8, 9, 10, 14])
def test_it_stays_exact_when_stopped_at_any_time(
    run_dir: Path, add_job: Add, poison: Callable[[set[int]], None], stop: int
) -> None:
    poison({5, 6})
    whole, cut = add_job("whole", health=REWIND), add_job("cut", health=REWIND)
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested):  # 7 steps, then back to 4
        run(run_dir, "cut", stop_asked=stop_after(stop), device="cpu")
    cut.skipped.unlink()  # a directory that was lost; checkpoints know it too
    run(run_dir, "cut", device="cpu")
    assert losses(cut) == losses(whole)
    assert read_sample_log(cut) == read_sample_log(whole)


def test_a_kill_right_after_going_back_is_exact_too(
    run_dir: Path, add_job: Add, poison: Callable[[set[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison({5, 6})
    whole, cut = add_job("whole", health=REWIND), add_job("cut", health=REWIND)
    run(run_dir, "whole", device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.train.samplelog.SampleLog.rewind", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(run_dir, "cut", device="cpu")
    # The checkpoint it went back to is damaged now; the one before knows nothing of the window.
    path = complete_checkpoints(cut.checkpoints)[0].path / "rank-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    run(run_dir, "cut", device="cpu")
    assert min(e["step"] for e in of_kind(cut, "progress") if e["attempt"] == 2) == 1
    assert losses(cut) == losses(whole)
    assert read_sample_log(cut) == read_sample_log(whole)


def test_before_the_first_checkpoint_it_goes_back_to_the_start(
    run_dir: Path, add_job: Add, sound: dict[int, list[int]], poison: Callable[[set[int]], None]
) -> None:
    poison({0, 1})
    job = add_job(health=REWIND, checkpoint={})
    run(run_dir, "aaaa", device="cpu")
    assert batches(job, sound) == list(range(2, 14))


def test_a_shorter_window_leaves_out_less(
    run_dir: Path, add_job: Add, sound: dict[int, list[int]], poison: Callable[[set[int]], None]
) -> None:
    poison({6, 7})
    job = add_job(health=REWIND.model_copy(update={"skip_window": "2 steps"}))
    run(run_dir, "aaaa", device="cpu")
    assert batches(job, sound) == [0, 1, 2, 3, 4, 5, *range(8, 14)]


def test_after_so_many_rewinds_it_ends(
    run_dir: Path, add_job: Add, sound: dict[int, list[int]], poison: Callable[[set[int]], None]
) -> None:
    poison(set(range(5, 24)))
    job = add_job(health=REWIND.model_copy(update={"rewinds": 2}))
    with pytest.raises(TrainingError, match="in 2 steps in a row, the last is step 6, after 2 rewinds"):
        run(run_dir, "aaaa", device="cpu")
    # Back to step 4 each time: batches 4 to 6, then 7 and 8, are left out.
    assert [(e["step"], e["first"], e["end"]) for e in of_kind(job, "rewind")] == [(4, 4, 7), (4, 4, 9)]
    assert batches(job, sound) == [0, 1, 2, 3, 9]  # the update of 9 was left out, its step was done


def test_the_quarantine_is_the_same_after_going_back_and_any_resume(
    run_dir: Path,
    add_job: Add,
    sound: dict[int, list[int]],
    poison: Callable[[set[int]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sample cannot be decoded before the checkpoint, another is met first in the data left out."""
    poison({5, 6})
    # After going back the early one is not met again before step 8: its second time is left out too.
    before, left_out = ({i for batch in batches for i in sound[batch]} for batches in ((0, 1, 2, 3), (5, 6)))
    early = min((before & left_out) - set(sound[10]))
    late = sound[4][0]
    view = open_view(DataView(path="data/glyphs", split="train"), run_dir)
    where = zip(*view.locate(np.array([early, late])), strict=True)
    broken = [bytes(view.read_row(int(shard), int(place))) for shard, place in where]
    view.close()
    real = assemble.decode_part
    monkeypatch.setattr(
        assemble,
        "decode_part",
        lambda data, scale: "broken" if bytes(data) in broken else real(data, scale),
    )
    changes: dict[str, Any] = {"health": REWIND, "bad_samples": 0.04}
    changes["checkpoint"] = {"every": "4 steps", "keep": 9}
    whole, cut = add_job("whole", **changes), add_job("cut", **changes)
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested):  # 7 steps, then back to 4, then one more
        run(run_dir, "cut", stop_asked=stop_after(8), device="cpu")
    shutil.rmtree(cut.checkpoints / "step-000000005")
    run(run_dir, "cut", device="cpu")

    def quarantines(job: JobDir) -> dict[int, list[int]]:
        found = complete_checkpoints(job.checkpoints)
        return {c.step: [sample[0] for sample in c.record["quarantine"]] for c in found}

    assert quarantines(whole) == quarantines(cut)
    assert quarantines(whole)[4] == [early]
    assert early in quarantines(whole)[8]
    assert quarantines(whole)[12] == sorted((early, late))
    assert losses(whole) == losses(cut)
    assert read_sample_log(whole) == read_sample_log(cut)


def test_settings_that_cannot_act_are_refused() -> None:
    with pytest.raises(ValidationError, match="rewinds has no effect on loss_not_finite 'stop'"):
        HealthSettings(rewinds=2)
    with pytest.raises(ValidationError, match="skip_window has no effect on loss_not_finite 'skip'"):
        HealthSettings(loss_not_finite="skip", skip_window="3 steps")

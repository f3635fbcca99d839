from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config import CheckpointSettings
from pipeline.errors import ConfigError, StopRequested
from pipeline.events import read_events
from pipeline.rundir import JobDir, write_json
from pipeline.train.checkpoint import FORMAT, MARKER, complete_checkpoints, outlived, retain
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after


@pytest.mark.parametrize(
    ("keep", "keep_every", "gone"),
    [
        (2, None, [3, 6, 9, 12, 15, 18, 21]),
        (2, 10, [3, 6, 9, 15, 18]),  # 12 stands for 10, 21 for 20; nothing for 0
        (1, 6, [3, 9, 15, 21]),
        (1, 1, []),
        (9, None, []),
        (0, None, [3, 6, 9, 12, 15, 18, 21, 24]),  # the newest always stays
    ],
)
def test_which_may_go(keep: int, keep_every: int | None, gone: list[int]) -> None:
    assert outlived(range(3, 28, 3), keep, keep_every) == gone


def test_the_choice_is_the_same_when_made_after_every_save() -> None:
    kept: list[int] = []
    for step in range(4, 200, 4):
        kept.append(step)
        kept = [s for s in kept if s not in outlived(kept, 2, 30)]
    assert kept == [32, 60, 92, 120, 152, 180, 192, 196]


def test_what_is_still_being_copied_is_spared(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write_json(tmp_path / f"step-{step:09d}" / MARKER, {"format": FORMAT, "step": step})
    retain(tmp_path, 1, None, {"step-000000002"})
    assert [checkpoint.step for checkpoint in complete_checkpoints(tmp_path)] == [4, 2]


def test_a_training_saves_by_itself_and_keeps_what_it_was_told_to(
    run_dir: Path, add_job: Callable[..., JobDir]
) -> None:
    job = add_job(duration="24 steps", checkpoint={"every": "auto", "mtbf_hours": 1000})
    run(run_dir, "aaaa", device="cpu")
    events = read_events(job.events)[0]
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [10, 24]
    [decided] = [event for event in events if event["event"] == "cadence"]
    assert decided["save_every"] > 24, "a minute is the least interval"
    kept = add_job("kept", checkpoint={"every": "2 steps", "keep": 1, "keep_every": "5 steps"})
    run(run_dir, "kept", device="cpu")
    assert [checkpoint.step for checkpoint in complete_checkpoints(kept.checkpoints)] == [12, 10, 6]


def test_a_checkpoint_of_another_format_is_refused_and_left_alone(
    run_dir: Path, add_job: Callable[..., JobDir]
) -> None:
    job = add_job()
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(6), device="cpu")
    [newest] = complete_checkpoints(job.checkpoints)[:1]
    write_json(newest.path / MARKER, newest.record | {"format": 1})
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=rf"{newest.path} is a checkpoint of format 1\n.*format {FORMAT},"
        ):
            run(run_dir, "aaaa", device="cpu")
    assert (newest.path / MARKER).exists()
    assert sorted(path.name for path in newest.path.iterdir())[1:] == [
        "rank-00000-of-00001.json",
        "rank-00000-of-00001.safetensors",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mtbf_hours": 5}, "mtbf_hours has no effect on every None; set every: auto"),
        ({"keep_every": "5 steps"}, "keep_every has no effect without saves on the way"),
        ({"every": "often"}, "expected a number and its unit"),
    ],
)
def test_settings_that_cannot_act_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CheckpointSettings(**settings)

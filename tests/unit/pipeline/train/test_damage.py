"""What a job finds damaged or gone when it is started again: checkpoints, data, room on the disk. It goes on
from what is whole, or says in one message what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, DataError, EnvironmentUnfit, StopRequested, UserError
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]


def losses(job: JobDir, attempt: int | None = None) -> dict[int, float]:
    """Step → loss, of one attempt or of the whole job (the newest counts)."""
    events, _ = read_events(job.events)
    return {
        e["step"]: e["loss"] for e in events if e["event"] == "progress" and attempt in (None, e["attempt"])
    }


@pytest.mark.parametrize("harm", ["flip", "tear", "remove", "remove index"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_dir: Path, add_job: Add, harm: str) -> None:
    whole, job = add_job("whole"), add_job("aaaa")
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(10), device="cpu")
    newest = job.checkpoints / "step-000000010" / "rank-00000-of-00001.safetensors"
    data = bytearray(newest.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    elif harm == "tear":
        newest.write_bytes(data[: len(data) // 2])
    elif harm == "remove":
        newest.unlink()
    else:
        newest.with_suffix(".json").unlink()
    run(run_dir, "aaaa", device="cpu")
    warnings = [e["message"] for e in read_events(job.events)[0] if e["event"] == "warning"]
    assert len(warnings) == 1
    assert "step-000000010 is damaged" in warnings[0]
    assert min(losses(job, attempt=2)) == 9
    assert losses(job) == losses(whole)
    assert read_sample_log(job) == read_sample_log(whole)


@pytest.mark.parametrize("harm", ["remove", "tear"])
def test_a_directory_without_its_marker_does_not_exist(run_dir: Path, add_job: Add, harm: str) -> None:
    job = add_job()
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(10), device="cpu")
    marker = job.checkpoints / "step-000000010" / "COMPLETE"
    if harm == "remove":
        marker.unlink()
    else:
        marker.write_bytes(marker.read_bytes()[:-20])
    run(run_dir, "aaaa", device="cpu")
    assert min(losses(job, attempt=2)) == 9


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_a_training_that_has_saved_never_begins_again_by_itself(
    run_dir: Path, add_job: Add, harm: str
) -> None:
    whole, job = add_job("whole"), add_job()
    run(run_dir, "whole", device="cpu")
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(6), device="cpu")
    kept = run_dir / "kept"
    shutil.copytree(job.checkpoints, kept)
    for file in job.checkpoints.glob("*/*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    if harm == "gone":
        shutil.rmtree(job.checkpoints)
    for _ in range(2):
        with pytest.raises(UserError, match=r"step 6 of job aaaa was saved, but no checkpoint in .* can be"):
            run(run_dir, "aaaa", device="cpu")
    damaged = [path.parent.name for path in sorted(job.checkpoints.glob("*/DAMAGED"))]
    assert damaged == (["step-000000004", "step-000000006"] if harm == "damaged" else [])
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    shutil.copytree(kept, job.checkpoints)
    run(run_dir, "aaaa", device="cpu")
    assert losses(job) == losses(whole)
    assert read_sample_log(job) == read_sample_log(whole)


def test_a_missing_shard_is_named_and_once_it_is_back_nothing_was_lost(run_dir: Path, add_job: Add) -> None:
    data = run_dir / "data" / "own"
    shutil.copytree(run_dir / "data" / "glyphs", data)
    (run_dir / "data" / "glyphs").unlink()
    data.rename(run_dir / "data" / "glyphs")
    whole, job = add_job("whole"), add_job()
    run(run_dir, "whole", device="cpu")
    shard = run_dir / "data" / "glyphs" / "train" / "000001.tar"
    away = shard.rename(run_dir / "away.tar")
    with pytest.raises(DataError, match=f"shard {shard} cannot be opened") as caught:
        run(run_dir, "aaaa", device="cpu")
    assert caught.value.do == "put it back, or prepare the dataset again"
    [failed] = [e for e in read_events(job.events)[0] if e["event"] == "failed"]
    assert str(shard) in failed["error"]
    away.rename(shard)
    run(run_dir, "aaaa", device="cpu")
    assert losses(job) == losses(whole)
    assert read_sample_log(job) == read_sample_log(whole)


def test_a_checkpoint_of_other_data_is_refused(run_dir: Path, add_job: Add) -> None:
    job = add_job()
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(6), device="cpu")
    description = json.loads(job.job.read_text())
    description["work"]["seed"] = 2
    job.job.write_text(json.dumps(description))
    with pytest.raises(ConfigError, match=r"(?s)seed 2 .* 1 in the checkpoint"):
        run(run_dir, "aaaa", device="cpu")
    shutil.rmtree(job.path)


def test_a_full_disk_ends_with_one_message_and_the_next_attempt_continues(
    run_dir: Path, add_job: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, job = add_job("whole"), add_job("aaaa")
    run(run_dir, "whole", device="cpu")

    def full(descriptor: int, data: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.train.tensorfile._write_all", full)
    with pytest.raises(EnvironmentUnfit, match=r"rank 0 could not write .*No space left on device"):
        run(run_dir, "aaaa", device="cpu")
    assert not list(job.checkpoints.glob("*/COMPLETE"))
    monkeypatch.undo()
    run(run_dir, "aaaa", device="cpu")
    assert losses(job) == losses(whole)
    assert read_sample_log(job) == read_sample_log(whole)

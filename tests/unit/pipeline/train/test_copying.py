"""Checkpoints on a real S3 server (moto's, in a process of its own) and on a mounted path."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.data import remote as waits
from pipeline.errors import ConfigError, EnvironmentUnfit, StopRequested
from pipeline.events import Event, read_events
from pipeline.rundir import JobDir
from pipeline.train.remote import RemoteCheckpoints, remote_name
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.train_jobs import stop_after

Add = Callable[..., JobDir]
URL = "s3://checkpoints/runs"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket; fsspec's S3 file system that sees it."""
    return empty_bucket(monkeypatch, server, "checkpoints")


def steps_at(files: Any, job: str = "aaaa") -> list[int]:
    return sorted(
        json.loads(files.cat_file(path))["step"] for path in files.glob(f"checkpoints/runs/{job}/*/COMPLETE")
    )


def of_kind(job: JobDir, kind: str) -> list[Event]:
    return [event for event in read_events(job.events)[0] if event["event"] == kind]


def losses(job: JobDir, attempt: int | None = None) -> dict[int, float]:
    return {e["step"]: e["loss"] for e in of_kind(job, "progress") if attempt in (None, e["attempt"])}


@pytest.fixture
def cut(run_dir: Path, add_job: Add, bucket: Any) -> JobDir:
    """A job that was stopped after step 10; all of it is in the bucket."""
    job = add_job(checkpoint={"every": "4 steps", "keep": 2, "remote": URL})
    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_after(10), device="cpu")
    return job


def test_a_lost_directory_is_fetched_from_the_bucket(
    run_dir: Path, add_job: Add, cut: JobDir, bucket: Any
) -> None:
    whole = add_job("whole")
    run(run_dir, "whole", device="cpu")
    assert steps_at(bucket)[-1] == 10
    assert len(steps_at(bucket)) == 2, "the bucket keeps as many as the disk"
    assert not bucket.exists("checkpoints/runs/aaaa/probe")
    shutil.rmtree(cut.checkpoints)
    run(run_dir, "aaaa", device="cpu")
    assert min(losses(cut, attempt=2)) == 11
    assert losses(cut) == losses(whole)
    assert read_sample_log(cut) == read_sample_log(whole)
    assert steps_at(bucket)[-1] == 12, "the last one was not copied"
    copied = of_kind(cut, "copied")[-1]
    files = json.loads((cut.checkpoints / "step-000000012" / "COMPLETE").read_text())["files"]
    assert copied["bytes"] == sum(file["bytes"] for file in files.values())


def test_the_newer_of_both_places_is_taken(run_dir: Path, cut: JobDir, bucket: Any) -> None:
    for path in bucket.glob("checkpoints/runs/aaaa/step-000000010-*"):
        bucket.rm(path, recursive=True)
    run(run_dir, "aaaa", device="cpu")
    assert min(losses(cut, attempt=2)) == 11


def test_a_damaged_local_one_is_replaced_by_its_copy(run_dir: Path, cut: JobDir, bucket: Any) -> None:
    path = cut.checkpoints / "step-000000010" / "rank-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    run(run_dir, "aaaa", device="cpu")
    assert min(losses(cut, attempt=2)) == 11
    assert "step-000000010 is damaged" in of_kind(cut, "warning")[0]["message"]


def test_a_damaged_copy_is_told_and_the_one_before_is_taken(run_dir: Path, cut: JobDir, bucket: Any) -> None:
    [path] = bucket.glob("checkpoints/runs/aaaa/step-000000010-*/*.safetensors")
    data = bytearray(bucket.cat_file(path))
    data[len(data) // 2] ^= 1
    bucket.pipe_file(path, bytes(data))
    shutil.rmtree(cut.checkpoints)
    run(run_dir, "aaaa", device="cpu")
    assert min(losses(cut, attempt=2)) in (5, 9)  # step 8 is copied only if there was time for it
    [warning] = of_kind(cut, "warning")
    assert "step-000000010-" in warning["message"]
    assert "the hash of rank-00000-of-00001.safetensors does not agree" in warning["message"]


@pytest.mark.parametrize("harm", ["gone", "torn"])
def test_a_copy_without_a_whole_marker_does_not_exist(
    run_dir: Path, cut: JobDir, bucket: Any, harm: str
) -> None:
    [marker] = bucket.glob("checkpoints/runs/aaaa/step-000000010-*/COMPLETE")
    if harm == "gone":
        bucket.rm_file(marker)
    else:
        bucket.pipe_file(marker, bucket.cat_file(marker)[:-20])
    shutil.rmtree(cut.checkpoints)
    calls: list[list[str]] = []

    def stop_and_look() -> bool:
        calls.append(bucket.glob("checkpoints/runs/aaaa/step-000000010-*/*"))
        return len(calls) > 1  # after a step, not before the first

    with pytest.raises(StopRequested):
        run(run_dir, "aaaa", stop_asked=stop_and_look, device="cpu")
    assert min(losses(cut, attempt=2)) in (5, 9)
    assert calls[0] == [], "what was left over has not been swept"


def test_a_store_that_breaks_is_told_and_training_goes_on(
    run_dir: Path, add_job: Add, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_FIRST_WAIT_S", 0.0)
    job = add_job(checkpoint={"every": "4 steps", "remote": URL})
    calls = iter(range(100))

    def break_it() -> bool:
        if next(calls) == 2:
            bucket.rm("checkpoints", recursive=True)
        return False

    result = run(run_dir, "aaaa", stop_asked=break_it, device="cpu")
    assert result["outputs"]["steps"] == 12
    warnings = [event["message"] for event in of_kind(job, "warning")]
    assert warnings
    assert all(f"was not copied to {URL} (rank 0: " in message for message in warnings)


def test_a_store_that_cannot_be_used_is_refused_before_the_first_step(
    run_dir: Path, add_job: Add, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_FIRST_WAIT_S", 0.0)
    job = add_job("missing", checkpoint={"remote": "s3://no-such-bucket/runs"})
    with pytest.raises(EnvironmentUnfit, match=r"writing to it of .* s3://no-such-bucket/runs"):
        run(run_dir, "missing", device="cpu")
    assert not losses(job)
    assert not bucket.exists("no-such-bucket"), "a mistyped bucket was made"
    for url, word in (("http://127.0.0.1/x", "can be written to"), ("nowhere://x", "fsspec knows")):
        with pytest.raises(ConfigError, match=word):
            RemoteCheckpoints(url, "aaaa")


def test_a_mounted_path_will_do_and_copies_are_named_by_their_content(
    run_dir: Path, add_job: Add, tmp_path: Path
) -> None:
    job = add_job(checkpoint={"remote": str(tmp_path / "mounted")})
    run(run_dir, "aaaa", device="cpu")
    marker = (job.checkpoints / "step-000000012" / "COMPLETE").read_bytes()
    [copy] = (tmp_path / "mounted" / "aaaa").iterdir()
    assert copy.name == remote_name("step-000000012", marker)
    assert copy.name != remote_name("step-000000012", marker + b" ")
    assert (copy / "COMPLETE").read_bytes() == marker

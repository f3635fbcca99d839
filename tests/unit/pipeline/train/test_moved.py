"""A training whose machine is lost goes on at another from what a bucket holds, and nothing is missing."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.errors import StopRequested
from pipeline.events import read_events
from pipeline.keeping import Keeper
from pipeline.lease import Lease
from pipeline.remote_state import RemoteState
from pipeline.rundir import JobDir, RunDir
from pipeline.train.samplelog import read_sample_log
from pipeline.train.worker import run
from tests.helpers.object_store import empty_bucket, s3_server
from tests.helpers.train_jobs import stop_after

URL = "s3://moved/runs/small"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with s3_server() as server:
        empty_bucket(monkeypatch, server, "moved")
        yield


def keeper(path: Path, lease: Lease) -> Keeper:
    """One that makes a pass only when it is asked to, and at its end."""
    return Keeper(RunDir(path), RemoteState(URL), lease, f"{URL}/checkpoints", print, interval_s=3600)


def losses(job: JobDir, attempt: int | None = None) -> dict[int, float]:
    progress = [e for e in read_events(job.events)[0] if e["event"] == "progress"]
    return {e["step"]: e["loss"] for e in progress if attempt in (None, e["attempt"])}


def told(job: JobDir) -> bool:
    return any(event["event"] == "checkpoint" for event in read_events(job.events)[0])


@pytest.mark.parametrize(("kept_late", "goes_on_at"), [(True, 5), (False, 1)])
def test_it_goes_on_from_the_newest_checkpoint_that_the_bucket_knows_all_of(
    run_dir: Path,
    add_job: Callable[..., JobDir],
    bucket: None,
    tmp_path: Path,
    kept_late: bool,
    goes_on_at: int,
) -> None:
    """The only pass was when the checkpoint of step 4 was complete, or before; copied were those of 4, 8 and
    10."""
    whole = add_job("whole")
    run(run_dir, "whole", device="cpu")
    shutil.move(whole.path, tmp_path / "whole")
    job = add_job(checkpoint={"every": "4 steps", "keep": 5, "remote": f"{URL}/checkpoints"})
    lease = Lease(tmp_path / "lease-one.json")
    with lease, keeper(run_dir, lease) as first:
        kept, stop = False, stop_after(10)

        def stop_asked() -> bool:
            nonlocal kept
            if not kept and told(job) == kept_late:
                kept = True
                first.keep()
            return stop()

        with pytest.raises(StopRequested):
            run(run_dir, "aaaa", stop_asked=stop_asked, device="cpu")
        lease.lost.set()  # its end makes no pass
    data = (run_dir / "data" / "glyphs").resolve()
    shutil.rmtree(run_dir)

    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    (other / "data" / "glyphs").symlink_to(data)
    lease = Lease(tmp_path / "lease-two.json")
    with lease, keeper(other, lease):
        run(other, "aaaa", device="cpu")
    moved, undisturbed = RunDir(other).job("aaaa"), JobDir(tmp_path / "whole")
    assert min(losses(moved, attempt=moved.read_generation())) == goes_on_at
    assert losses(moved) == losses(undisturbed)
    assert read_sample_log(moved) == read_sample_log(undisturbed)
    assert RemoteState(URL).read("jobs/aaaa/result.json") == moved.result.read_bytes()

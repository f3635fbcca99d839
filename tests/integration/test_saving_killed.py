"""One of two ranks fails while the other lives: killed in the middle of a save, or without a shard of its
data. The other ends by itself with one message, and the next attempt goes on exactly."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from pipeline.errors import EnvironmentUnfit
from pipeline.events import read_events
from pipeline.rundir import JobDir, write_json
from pipeline.train.samplelog import read_sample_log
from tests.integration.test_worker import Ranks, add_job, losses

pytestmark = pytest.mark.slow
PROGRAM = [sys.executable, str(Path(__file__).with_name("saving_killed.py"))]
STEPS = 12  # saved after 5 and 10
# Rank and moment of the save of step 10 → the step that the next attempt goes on from.
CASES = {
    (1, "in the middle of a file"): 5,
    (1, "between tensors and index"): 5,
    (0, "before the marker"): 5,
    (0, "after the marker"): 10,
}


@pytest.fixture(scope="module")
def undisturbed(run_dir: Path) -> JobDir:
    job = _job(run_dir, "undisturbed")
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [0, 0]
    return job


def _job(run_dir: Path, digest: str) -> JobDir:
    job = add_job(run_dir, digest, steps=STEPS)
    description = json.loads(job.job.read_text())
    description["work"]["validate_on"] = None
    write_json(job.job, description)
    return job


def check_survivor(message: str) -> None:
    assert "found: another rank has ended" in message
    assert "Traceback" not in message


def check_goes_on(job: JobDir, undisturbed: JobDir, step: int) -> None:
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [0, 0]
    assert [e["step"] for e in read_events(job.events)[0] if e["event"] == "start"] == [0, step]
    assert losses(job) == losses(undisturbed)
    assert read_sample_log(job) == read_sample_log(undisturbed)


@pytest.mark.parametrize(("rank", "moment"), CASES)
def test_a_rank_that_dies_in_a_save_costs_at_most_that_save(
    run_dir: Path, undisturbed: JobDir, rank: int, moment: str
) -> None:
    job = _job(run_dir, moment.replace(" ", "-"))
    with Ranks(job, 2, [*PROGRAM, str(job.job), str(rank), moment]) as ranks:
        codes = ranks.wait()
        check_survivor(ranks.errors[1 - rank].read_text())
    assert (codes[rank], codes[1 - rank]) == (-signal.SIGKILL, EnvironmentUnfit.exit_code)
    check_goes_on(job, undisturbed, CASES[rank, moment])


def test_a_shard_that_one_rank_misses_is_named_once(run_dir: Path, undisturbed: JobDir) -> None:
    job = _job(run_dir, "missing-shard")
    shard = run_dir / "data" / "glyphs" / "train" / "000002.tar"
    away = shard.rename(run_dir / "away.tar")
    with Ranks(job, 2) as ranks:
        codes = ranks.wait()
        said = [path.read_text() for path in ranks.errors]
    away.rename(shard)
    named = [rank for rank, text in enumerate(said) if f"found: shard {shard} cannot be opened" in text]
    assert named, said
    for rank in range(2):
        assert codes[rank] == (4 if rank in named else EnvironmentUnfit.exit_code)
        assert "Traceback" not in said[rank]
        if rank not in named:
            check_survivor(said[rank])
    check_goes_on(job, undisturbed, 0)

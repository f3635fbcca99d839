from pathlib import Path

import torch

from pipeline.rundir import JobDir
from pipeline.train.samplelog import SampleLog, read_sample_log


def write(job: JobDir, attempt: int, rank: int, steps: dict[int, list[int]]) -> None:
    log = SampleLog(job.samples(attempt, rank))
    for step, ids in steps.items():
        log.write(step, torch.tensor(ids))
    log.close()


def test_ranks_are_joined_in_order(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    write(job, 1, 1, {1: [3, 4], 2: [7, 8]})
    write(job, 1, 0, {1: [1, 2], 2: [5, 6]})
    assert read_sample_log(job) == {1: [1, 2, 3, 4], 2: [5, 6, 7, 8]}


def test_later_attempts_count_from_their_first_step_on(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    write(job, 1, 0, {1: [1], 2: [2], 3: [30], 4: [40]})
    write(job, 2, 0, {})  # ended before its first step
    write(job, 3, 0, {3: [3]})
    assert read_sample_log(job) == {1: [1], 2: [2], 3: [3]}


def test_a_step_that_one_rank_did_not_finish_and_a_torn_line_do_not_count(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    write(job, 1, 0, {1: [1], 2: [2]})
    write(job, 1, 1, {1: [3]})
    with job.samples(1, 1).open("a") as file:
        file.write('{"step": 2, "id')
    assert read_sample_log(job) == {1: [1, 3]}


def test_no_log_is_no_steps(tmp_path: Path) -> None:
    assert read_sample_log(JobDir(tmp_path)) == {}


def test_after_a_rewind_its_lines_count(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    write(job, 1, 0, {1: [1], 2: [2], 3: [30]})
    log = SampleLog(job.samples(2, 0))
    for step, ids in {3: [31], 4: [41]}.items():
        log.write(step, torch.tensor(ids))
    log.rewind(2, 2, 4)
    log.write(3, torch.tensor([5]))
    log.close()
    assert read_sample_log(job) == {1: [1], 2: [2], 3: [5]}
    # Further back than this attempt began.
    log = SampleLog(job.samples(3, 0))
    log.write(3, torch.tensor([32]))
    log.rewind(1, 1, 3)
    log.write(2, torch.tensor([6]))
    log.close()
    assert read_sample_log(job) == {1: [1], 2: [6]}

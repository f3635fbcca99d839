"""A rank that hangs or is slow is named with its phase, all ranks dump their stacks, and nothing is lost."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from pipeline.events import read_events
from pipeline.rundir import write_json
from pipeline.train.heartbeat import read_heartbeat
from pipeline.train.samplelog import read_sample_log
from tests.helpers.train_jobs import write_glyphs
from tests.integration.test_worker import TIMEOUT_S, Ranks, add_job

STEPS = 22


@pytest.mark.slow
def test_a_rank_that_hangs_or_is_slow_is_named_and_stacks_are_dumped(tmp_path: Path) -> None:
    write_glyphs(tmp_path / "data" / "glyphs")
    job = add_job(tmp_path, "hanging", steps=STEPS)
    description = json.loads(job.job.read_text())
    description["work"]["settings"]["health"]["stall_s"] = 2
    write_json(job.job, description)
    go = tmp_path / "go"
    program = [sys.executable, str(Path(__file__).with_name("hanging_ranks.py")), str(job.job), str(go)]
    logs = [job.rank_log(1, rank) for rank in range(2)]
    # On a busy machine other waits may be told too.
    named = "the others wait for rank [1], which is in phase 'data' after step 4"

    def told() -> bool:
        said = [e["message"] for e in read_events(job.events)[0] if e["event"] == "warning"]
        stacks = [log.read_text() if log.exists() else "" for log in logs]
        return (
            any(text.startswith(f"no step for 2 s; {named}; stacks are in") for text in said)
            and "in wait_for_go" in stacks[1]
            and "in forward_and_backward" in stacks[0]
        )

    with Ranks(job, 2, program) as ranks:
        end = time.monotonic() + 4 * TIMEOUT_S
        while not told():
            assert time.monotonic() < end, [log.read_text() for log in logs]
            assert all(process.poll() is None for process in ranks.processes), ranks.errors[0].read_text()
            time.sleep(0.1)
        beats = [read_heartbeat(log) for log in logs]
        assert [(beat["step"], beat["phase"]) for beat in beats if beat] == [(4, "compute"), (4, "data")]
        go.touch()
        assert ranks.wait() == [0, 0]
    said = [e["message"] for e in read_events(job.events)[0] if e["event"] == "warning"]
    slow = [text for text in said if "is slow" in text]
    assert len(slow) == 1
    assert slow[0].startswith("step 20: rank 1 is slow: data takes it 1e+03 s a step, the others ")
    assert list(read_sample_log(job)) == list(range(1, STEPS + 1))

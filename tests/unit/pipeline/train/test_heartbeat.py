import time
from pathlib import Path

from pipeline.train.heartbeat import Heartbeat, describe_stall, read_heartbeat
from pipeline.train.spikes import SpikeDetector


def test_a_stall_is_named_and_stacks_are_dumped(tmp_path: Path) -> None:
    log, said = tmp_path / "rank-00000.log", []
    with Heartbeat(log, 0, 2, 0.2, said.append) as beat:
        beat("agree", 12)
        end = time.monotonic() + 10
        while not said and time.monotonic() < end:
            time.sleep(0.02)
    assert "rank [1], which is not started" in said[0]
    assert "test_a_stall_is_named_and_stacks_are_dumped" in log.read_text()
    seen = read_heartbeat(log)
    assert seen is not None
    assert (seen["step"], seen["phase"]) == (12, "agree")


def test_the_rank_in_the_earliest_phase_holds_up_the_rest() -> None:
    beats = [{"step": 7, "phase": "agree"}, {"step": 7, "phase": "data"}, {"step": 7, "phase": "agree"}]
    assert "the others wait for rank [1], which is in phase 'data' after step 7" in describe_stall(beats, 300)


def test_a_spike_is_noticed_and_does_not_become_usual() -> None:
    unusual = SpikeDetector(6)
    assert all(unusual(1.0 + 0.01 * (i % 3)) is None for i in range(40))
    for _ in range(3):
        assert "above its recent mean 1.01" in (unusual(2.0) or "")
    assert unusual(1.02) is None

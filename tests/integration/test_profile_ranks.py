"""Traces and the share of communication of a training on two ranks."""

from __future__ import annotations

from pathlib import Path

from launch.bench.ranks import run_job, write_drawings
from pipeline.config import EngineSettings, ModelSettings, ProfileSettings, TrainSettings
from pipeline.rundir import RunDir


def test_both_ranks_leave_traces_and_communication_is_a_share_of_the_step(tmp_path: Path) -> None:
    settings = TrainSettings(
        model=ModelSettings(name="vit_ti8", options={"width": 32, "depth": 2, "heads": 2, "mlp": 64}),
        image_size=16,
        duration="5 steps",
        batch=4,
        engine=EngineSettings(stage=1, self_test=False),
        profile=ProfileSettings(steps=(2,), communication="2 steps"),
        log_every="1 steps",
    )
    data = write_drawings(tmp_path, 16, classes=2, per_class=10)
    events = run_job(tmp_path, "profiled", data, settings, 2, "cpu")
    shares = {e["step"]: e["communication"] for e in events if e.get("communication") is not None}
    assert sorted(shares) == [2, 4]
    assert all(0 < share <= 1 for share in shares.values())
    job = RunDir(tmp_path).job("profiled")
    assert sorted(job.profiles.iterdir()) == [job.profile(2, rank) for rank in (0, 1)]
    assert [e["file"] for e in events if e["event"] == "profile"] == [job.profile(2, 0).name]

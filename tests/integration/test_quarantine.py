"""Samples that cannot be decoded, met by different ranks: counted together, and ended together."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.config import WebdatasetSource
from pipeline.data.write import prepare
from pipeline.events import read_events
from pipeline.rundir import JobDir, write_json
from tests.integration.test_worker import Ranks, add_job

BAD = {7: b"text", 31: b""}  # a batch of all samples puts them on different ranks


def _job(run_dir: Path, bad_samples: float) -> JobDir:
    tar_path = run_dir / "shard.tar"
    with tarfile.open(tar_path, "w") as tar:
        for n in range(60):
            for name, content in ((f"s{n:02d}.png", BAD.get(n, _picture(n))), (f"s{n:02d}.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = WebdatasetSource(source="webdataset", train=str(tar_path), test=str(tar_path))
    prepare(source, run_dir / "data" / "glyphs")
    job = add_job(run_dir, "damaged", steps=2)
    description: dict[str, Any] = json.loads(job.job.read_text())
    work = description["work"]
    work["validate_on"] = None
    work["settings"] |= {"batch": 60, "bad_samples": bad_samples}
    work["settings"]["optimizer"]["warmup"] = "0 steps"
    write_json(job.job, description)
    return job


def _picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def _quarantined(job: JobDir) -> list[int]:
    events = [event for event in read_events(job.events)[0] if event["event"] == "quarantine"]
    return [sample["id"] for event in events for sample in event["samples"]]


def test_ranks_that_are_over_the_budget_only_together_end_together(tmp_path: Path) -> None:
    job = _job(tmp_path, bad_samples=0.001)  # one sample
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [4, 4]
        messages = [path.read_text() for path in ranks.errors]
    for message in messages:
        assert "2 samples cannot be decoded (s07: not an image; s31: empty)" in message
        assert "at most 1 of 60" in message
        assert "Traceback" not in message
    assert not list(job.checkpoints.glob("step-*"))


@pytest.mark.slow
def test_within_the_budget_they_are_listed_once_and_kept_in_the_checkpoint(tmp_path: Path) -> None:
    job = _job(tmp_path, bad_samples=0.04)
    with Ranks(job, 2) as ranks:
        assert ranks.wait() == [0, 0]
    assert _quarantined(job) == [7, 31]
    [newest] = sorted(job.checkpoints.glob("step-*"))[-1:]
    record = json.loads((newest / "COMPLETE").read_text())
    assert record["quarantine"] == [[7, "s07", "not an image"], [31, "s31", "empty"]]

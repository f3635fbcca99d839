"""A process pays only for the kind of job that it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

_DRAWN = """
import pipeline.data.write
from pipeline.config import GlyphsSource
from pipeline.data.sources.catalog import open_source
open_source(GlyphsSource(source="glyphs", classes=2, train_per_class=1, test_per_class=1))
"""


@pytest.mark.parametrize(
    ("work", "blocked"),
    [
        ("", ("torch", "torchvision", "sklearn", "webdataset")),
        ("import pipeline.train.worker", ("torchvision", "sklearn", "webdataset", "mlflow", "deepspeed")),
        (_DRAWN, ("torchvision", "sklearn", "pipeline.train.worker", "mlflow", "deepspeed")),
    ],
    ids=["before a job", "training", "drawings"],
)
def test_what_another_kind_of_job_needs_is_not_imported(work: str, blocked: tuple[str, ...]) -> None:
    block = f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))"  # None: an import raises
    code = f"{block}\nimport pipeline.fanout, pipeline.stages.execute\n{work}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

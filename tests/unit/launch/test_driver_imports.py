"""The driver of a run needs no PyTorch: what it plans, checks, weighs and mirrors is arithmetic and files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

_DRIVER = """
import sys
from pathlib import Path
sys.modules["torch"] = None  # an import of it raises
import launch.display, launch.preflight, launch.status, pipeline.fanout, pipeline.tracking
from launch.run import dry_run
from pipeline.config_io import load_config
from pipeline.driver import plan_run
from pipeline.executor import RayExecutor
from pipeline.graph import Selection
from pipeline.rundir import RunDir
from pipeline.stages.catalog import write_job

config = load_config(Path(sys.argv[1]), ["root=" + sys.argv[2]])
run = RunDir(Path(sys.argv[2]))
dry_run(config, Selection(), as_json=False)
executor = RayExecutor(config, run)
for item in plan_run(config, run):
    executor.cost(item)
    if item.job.stage in ("prepare", "pretrain", "choose"):
        write_job(config, run, item)
"""


def test_the_driver_needs_no_pytorch(tmp_path: Path) -> None:
    config = ROOT / "tests" / "integration" / "small.yaml"
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(config), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "finetune/digits/pretrained/seed0" in done.stdout
    assert list(tmp_path.glob("jobs/*/job.json"))

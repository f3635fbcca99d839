"""Initial weights do not depend on the number of ranks, even where no rank ever holds a whole model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_model_built_in_parts_has_the_weights_of_a_whole_one(ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [*launcher, str(ROOT / "tests/numerics/model_ranks.py"), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        check=True,
        timeout=500,
    )
    for name, found in json.loads(out.read_text()).items():
        assert found["differing"] == [], name
        assert found["largest"] < 1e-6, name
        assert found["features"] == [2, 32], name

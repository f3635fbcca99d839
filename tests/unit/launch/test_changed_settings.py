"""What `vitline run` says of a directory that another configuration wrote."""

from __future__ import annotations

from pathlib import Path

from launch.run import changed_settings
from pipeline.config_io import dump_config, load_config
from pipeline.rundir import RunDir, write_atomic

SMALL = Path(__file__).parents[2] / "integration" / "small.yaml"


def test_what_differs_is_named_but_for_where_it_runs(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    config = load_config(SMALL, [])
    assert changed_settings(config, run) == []
    write_atomic(run.config, dump_config(config).encode())
    assert changed_settings(config, run) == []
    other = load_config(SMALL, ["root=elsewhere", "cluster.wait_s=5", "pretrain.batch=48", "seed=3"])
    assert changed_settings(other, run) == ["pretrain.batch 16 → 48", "seed 0 → 3"]


def test_a_file_that_was_cut_short_is_no_other_configuration(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.config.write_text("pretrain: [")
    assert changed_settings(load_config(SMALL, []), run) == []

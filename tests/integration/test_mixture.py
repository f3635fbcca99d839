"""A mixture of two datasets, with samples left out, from the configuration to the weights: the stage's job,
worker processes, a stop and a restart with another number of ranks. (Ray is no part of what is shown.)"""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np

from pipeline.config import RunConfig
from pipeline.config_io import load_config
from pipeline.data.describe import describe_batch
from pipeline.data.exclusions import write_exclusions
from pipeline.data.manifest import load_manifest
from pipeline.data.mixture import open_data
from pipeline.data.write import prepare
from pipeline.driver import plan_run
from pipeline.events import read_events
from pipeline.graph import Planned
from pipeline.rundir import RunDir, read_json
from pipeline.stages import pretrain
from pipeline.stages.catalog import write_job
from pipeline.train.samplelog import read_sample_log
from tests.integration.test_worker import Ranks

SMALL = Path(__file__).parent / "small.yaml"
STEPS, BATCH = 24, 12
LEFT_OUT = [0, 5, 17]
OVERRIDES = (
    "pretrain.dataset=null",
    "pretrain.mixture={glyphs: 3, count: 1}",
    "datasets.glyphs={source: glyphs, classes: 6, train_per_class: 10, test_per_class: 3, image_size: 16}",
    "datasets.count={source: sprites, label: count, train: 30, test: 12, image_size: 16}",
    f"pretrain.duration={STEPS} steps",
    f"pretrain.batch={BATCH}",
    "pretrain.image_size=16",
    "pretrain.checkpoint.every=5 steps",
    "transfer.datasets=[count]",
)


def test_a_mixture_goes_on_with_other_ranks(tmp_path: Path) -> None:
    left_out = tmp_path / "left_out.json"
    config, run = _prepared(tmp_path, left_out)
    job = _pretrain_job(config, run)
    write_job(config, run, job)
    left_out.unlink()  # ranks read the job's own copy
    directory = run.job(job.digest)

    with Ranks(directory, 2) as ranks:
        ranks.wait_for_step(7)
        ranks.processes[1].send_signal(signal.SIGUSR1)
        assert ranks.wait() == [75, 75]
    stopped = max(read_sample_log(directory))
    assert 7 <= stopped < STEPS
    with Ranks(directory, 1) as ranks:
        assert ranks.wait() == [0]

    kept = {"glyphs": f"jobs/{job.digest}/exclude-glyphs.json"}
    view = open_data(pretrain.data(config.pretrain, job.inputs, "train", kept), run.path)
    expected = {
        step + 1: [
            line["id"]
            for line in describe_batch(view, config.pretrain.order, seed=config.seed, batch=BATCH, step=step)
        ]
        for step in range(STEPS)
    }
    assert read_sample_log(directory) == expected
    # 30 samples of `count` come first, then 60 of `glyphs`; an epoch of a dataset holds all that are kept.
    ids = np.concatenate([expected[step] for step in expected])
    glyphs = np.bincount(ids[ids >= 30] - 30, minlength=60)
    assert [number for number, seen in enumerate(glyphs.tolist()) if not seen] == LEFT_OUT
    assert len(ids[ids >= 30]) == STEPS * BATCH * 3 // 4
    assert glyphs.max() <= 1 + min(glyphs[glyphs > 0])

    result = directory.read_result()
    assert result is not None
    assert result["outputs"]["train_fingerprint"] == view.fingerprint
    [validated] = [event for event in read_events(directory.events)[0] if event["event"] == "validate"]
    assert validated["n"] == 30  # 6 × 3 of one, 12 of the other


def _prepared(root: Path, left_out: Path) -> tuple[RunConfig, RunDir]:
    """Both datasets in the places where the run's stage prepare puts them."""
    config = load_config(SMALL, (*OVERRIDES, f"root={root}"))
    run = RunDir(root / "small")
    for item in plan_run(config, run):
        if item.job.stage == "prepare":
            name = item.job.name.split("/")[1]
            prepare(config.datasets[name], run.job(item.digest).path)
            if name == "glyphs":
                split = load_manifest(run.job(item.digest).path).splits["train"]
                write_exclusions(left_out, split.fingerprint, np.array(LEFT_OUT), "a test")
    config = load_config(SMALL, (*OVERRIDES, f"root={root}", f"pretrain.exclude={{glyphs: {left_out}}}"))
    return config, run


def _pretrain_job(config: RunConfig, run: RunDir) -> Planned:
    [job] = [item for item in plan_run(config, run) if item.job.stage == pretrain.STAGE]
    assert set(job.inputs) == {"data/glyphs", "data/count"}
    assert read_json(run.job(job.digest).job) is None
    return job

"""The jobs that a configuration gives: how many, what each is identified by, what each waits for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataMixture, RunConfig, WebdatasetSource
from pipeline.config_io import load_config
from pipeline.data.exclusions import write_exclusions
from pipeline.errors import ConfigError, UserError
from pipeline.graph import plan
from pipeline.rundir import RunDir, read_json, write_json
from pipeline.stages import finetune, prepare, pretrain
from pipeline.stages.catalog import all_jobs
from pipeline.stages.checks import check_run
from pipeline.stages.execute import execute
from tests.helpers.shards import write_tar

ROOT = Path(__file__).resolve().parents[3]


def demo(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "demo.yaml", overrides)


def digests(config: RunConfig) -> dict[str, str]:
    return {item.job.name: item.digest for item in plan(all_jobs(config), lambda digest: False, {})}


def changed(*overrides: str) -> set[str]:
    """Stages whose jobs are others with these overrides."""
    before, now = digests(demo()), digests(demo(*overrides))
    return {name.split("/")[0] for name in now if before.get(name) != now[name]}


def test_every_cell_has_its_jobs() -> None:
    config = demo(
        "transfer.datasets=[digits]", "transfer.seeds=[0,1]", "transfer.protocol.learning_rates=[0.1,0.2]"
    )
    counts = Counter(job.stage for job in all_jobs(config))
    assert counts == {"prepare": 2, "pretrain": 1, "choose": 4, "finetune": 4, "evaluate": 4, "compare": 1}


def test_one_rate_leaves_nothing_to_choose() -> None:
    jobs = {job.name: job for job in all_jobs(demo("transfer.protocol.learning_rates=[0.1]"))}
    assert not any(job.stage == "choose" for job in jobs.values())
    assert dict(jobs["finetune/digits/scratch/seed0"].inputs) == {"data": "prepare/digits"}


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("transfer.protocol.learning_rates=[0.5,0.6]", {"choose", "finetune", "evaluate", "compare"}),
        ("pretrain.optimizer.learning_rate=0.5", {"pretrain", "choose", "finetune", "evaluate", "compare"}),
        ("datasets.digits.test_fraction=0.5", {"prepare", "choose", "finetune", "evaluate", "compare"}),
        ("transfer.protocol.augment.evaluate=centre", {"choose", "finetune", "evaluate", "compare"}),
        # How the work is done is no part of what comes out.
        ("pretrain.gang.workers=4", set()),
        ("pretrain.threads=4", set()),
        ("pretrain.micro_batch=16", set()),
        ("pretrain.engine.stage=3", set()),
        ("pretrain.checkpoint.every=7 steps", set()),
        ("fanout.cpus_per_job=2", set()),
        # A default that is written out is the same setting.
        ("pretrain.label_smoothing=0.0", set()),
    ],
)
def test_what_a_change_makes_due(override: str, stages: set[str]) -> None:
    assert changed(override) == stages


MIXTURE = ("pretrain.dataset=null", "pretrain.mixture={glyphs: 3, digits: 1}")


def test_a_mixture_needs_all_its_datasets() -> None:
    jobs = {job.name: job for job in all_jobs(demo(*MIXTURE, "transfer.datasets=[count]"))}
    assert {name for name in jobs if name.startswith("prepare/")} == {
        "prepare/glyphs", "prepare/digits", "prepare/count"
    }  # fmt: skip
    inputs = {"data/digits": "prepare/digits", "data/glyphs": "prepare/glyphs"}
    assert dict(jobs["pretrain"].inputs) == inputs
    config = demo(*MIXTURE).pretrain
    work = pretrain.work(config, 0, {"data/digits": "D", "data/glyphs": "G"}, {"glyphs": "list.json"})
    assert isinstance(work.data, DataMixture)
    assert [(part.path, part.exclude) for part in work.data.parts] == [
        ("jobs/D", None), ("jobs/G", "list.json")
    ]  # fmt: skip
    assert work.data.weights == (1, 3)
    assert isinstance(work.validate_on, DataMixture)
    assert {part.split for part in work.validate_on.parts} == {"test"}


def test_weights_and_datasets_of_a_mixture_are_its_identity_and_their_order_is_not() -> None:
    first = digests(demo(*MIXTURE))["pretrain"]
    turned = ("pretrain.dataset=null", "pretrain.mixture={digits: 1, glyphs: 3}")
    assert digests(demo(*turned))["pretrain"] == first
    for other in ("{glyphs: 2, digits: 1}", "{glyphs: 3, count: 1}"):
        assert digests(demo("pretrain.dataset=null", f"pretrain.mixture={other}"))["pretrain"] != first
    assert digests(demo())["pretrain"] != first


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pretrain.mixture={glyphs: 3, digits: 1}",), "exactly one of dataset and mixture, but dataset is"),
        (("pretrain.dataset=null",), "exactly one of dataset and mixture, but neither"),
        ((*MIXTURE, "pretrain.mixture.digits=0"), "greater than 0"),
        (("pretrain.dataset=null", "pretrain.mixture={glyphs: 3, x: 1}"), "pretrain.mixture names 'x'"),
        (("pretrain.exclude={digits: list.json}",), "exclude names 'digits', which is not among glyphs"),
    ],
)
def test_what_a_mixture_cannot_be(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demo(*overrides)


def test_what_is_left_out_is_part_of_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    exclude = f"pretrain.exclude={{glyphs: {path}}}"
    with pytest.raises(UserError, match=r"no list of exclusions at .*list\.json"):
        digests(demo(exclude))
    write_exclusions(path, "f" * 64, np.array([3, 1]), "one reason")
    first = digests(demo(exclude))["pretrain"]
    assert first != digests(demo())["pretrain"]
    write_exclusions(path, "f" * 64, np.array([1, 3]), "another reason")
    assert digests(demo(exclude))["pretrain"] == first
    write_exclusions(path, "f" * 64, np.array([1, 4]), "one reason")
    assert digests(demo(exclude))["pretrain"] != first


def test_a_new_photo_makes_its_dataset_due(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.jpg").write_bytes(b"one")
    source = f"datasets.photos={{source: folder, path: {tmp_path}}}"
    config = demo(source, "transfer.datasets=[photos]")
    before = digests(config)
    assert digests(config) == before
    (tmp_path / "train" / "cat" / "2.jpg").write_bytes(b"two")
    assert digests(config)["prepare/photos"] != before["prepare/photos"]
    assert digests(config)["pretrain"] == before["pretrain"]


def choose(tmp_path: Path, scores: dict[float, tuple[float, float] | None]) -> float:
    """The rate that finetune takes when the choices scored (top-1, loss) or diverged (None)."""
    rates = ",".join(str(rate) for rate in scores)
    config = demo(f"transfer.protocol.learning_rates=[{rates}]")
    run = RunDir(tmp_path)
    planned = {item.job.name: item for item in plan(all_jobs(config), lambda digest: False, {})}
    for rate, score in scores.items():
        digest = planned[f"choose/digits/scratch/lr{rate:g}"].digest
        metrics = {"val/top1": score[0], "val/loss": score[1]} if score else {}
        write_json(run.job(digest).result, {"metrics": metrics})
    item = planned["finetune/digits/scratch/seed1"]
    return finetune.work(config, run, item.job, item.inputs).settings.optimizer.learning_rate


def test_the_best_on_the_held_out_part_is_chosen(tmp_path: Path) -> None:
    assert choose(tmp_path, {0.1: (0.5, 1.0), 0.2: (0.7, 2.0), 0.3: (0.6, 0.1)}) == 0.2


def test_a_tie_goes_to_the_lower_loss_and_a_diverged_rate_is_out(tmp_path: Path) -> None:
    assert choose(tmp_path, {0.1: (0.5, 1.0), 0.2: (0.5, 0.9), 0.3: None}) == 0.2


def test_the_pretraining_head_is_not_taken_along(tmp_path: Path) -> None:
    config = demo("pretrain.model.representation=true", "transfer.protocol.learning_rates=[0.1]")
    planned = {item.job.name: item for item in plan(all_jobs(config), lambda digest: False, {})}
    item = planned["finetune/digits/pretrained/seed0"]
    job = finetune.work(config, RunDir(tmp_path), item.job, item.inputs)
    assert not job.settings.model.representation
    assert job.start == f"jobs/{planned['pretrain'].digest}/weights.safetensors"
    assert job.data.split == "train"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.gang.workers=3", "set batch to"),
        ("pretrain.model.name=vit_tj8", "vit_ti8"),
        ("transfer.protocol.image_size=30", "transfer.protocol.image_size=30"),
        ("pretrain.engine.kind=plain", "one worker"),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_run(demo(override))


def test_what_was_left_out_of_damaged_shards_stands_in_the_result(tmp_path: Path) -> None:
    photo = next((ROOT / "tests/data/photos").rglob("*.jpg")).read_bytes()
    shard = write_tar(tmp_path / "shard.tar", {"a.jpg": photo, "a.cls": b"0", "b.jpg": photo})
    settings = WebdatasetSource(source="webdataset", train=str(shard), test=str(shard), allow_damaged=True)
    run, job = RunDir(tmp_path / "run"), prepare.STAGE
    told = {"name": job, "stage": job, "version": 1, "slice": {"dataset": settings.model_dump(mode="json")}}
    write_json(run.job("adopt").job, {**told, "inputs": {}})
    execute(run.path, "adopt")
    result = read_json(run.job("adopt").result)
    assert result is not None
    assert result["outputs"]["unreadable"] == 2
    assert result["outputs"]["note"].startswith(
        f"2 faults of shards left out, the first: train/{shard}: b has no"
    )

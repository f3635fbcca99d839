"""Protocols: what each kind has and refuses, what holds on which dataset, and the jobs that follow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.config import EvaluateJob, FinetuneProtocol, ProbeJob, RunConfig
from pipeline.config_io import load_config
from pipeline.errors import ConfigError
from pipeline.graph import Planned, plan
from pipeline.rundir import RunDir
from pipeline.stages import evaluate, finetune
from pipeline.stages.catalog import all_jobs
from pipeline.stages.checks import check_run
from pipeline.stages.prepare import job_name

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = sorted((ROOT / "configs" / "transfer").glob("*.yaml"))
VTAB = [
    "caltech101",
    "cifar100",
    "dtd",
    "flowers",
    "pets",
    "sun397",
    "svhn",
    "camelyon",
    "eurosat",
    "resisc45",
    "retinopathy",
    "clevr_count",
    "clevr_distance",
    "dmlab",
    "dsprites_location",
    "dsprites_orientation",
    "kitti",
    "norb_azimuth",
    "norb_elevation",
]


def demo(*overrides: str) -> RunConfig:
    return load_config(ROOT / "configs" / "demo.yaml", overrides)


def planned(config: RunConfig) -> dict[str, Planned]:
    return {item.job.name: item for item in plan(all_jobs(config), lambda digest: False, {})}


def with_datasets(protocol: str, names: list[str]) -> RunConfig:
    """The demo with this protocol, on datasets of these names."""
    sets = [f"datasets.{name}={{source: digits}}" for name in names]
    chosen = f"transfer.datasets=[{','.join(names)}]"
    return demo(*sets, chosen, f"transfer.protocol=transfer/{protocol}.yaml", "transfer.seeds=[0]")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_protocol_can_be_used(path: Path) -> None:
    names = {"paper": ["pets", "cifar10"], "vtab": VTAB}.get(path.stem, ["digits"])
    config = with_datasets(path.stem, names)
    assert planned(config)["compare"].job.slice["protocol"] == config.transfer.protocol.name
    check_run(config)


def test_the_papers_settings_are_those_of_its_table_4() -> None:
    protocol = with_datasets(
        "paper", ["imagenet", "cifar10", "cifar100", "pets", "flowers"]
    ).transfer.protocol
    assert isinstance(protocol, FinetuneProtocol)
    found = {name: protocol.on(name) for name in protocol.per_dataset}
    assert {name: own.duration for name, own in found.items()} == {
        "imagenet": "20_000 steps",
        "cifar10": "10_000 steps",
        "cifar100": "10_000 steps",
        "pets": "500 steps",
        "flowers": "500 steps",
    }
    assert found["imagenet"].learning_rates == (0.003, 0.01, 0.03, 0.06)
    assert found["pets"].learning_rates == found["cifar10"].learning_rates == (0.001, 0.003, 0.01, 0.03)
    assert {name: own.held_out for name, own in found.items()} == {
        "imagenet": 0.01,
        "cifar10": 0.02,
        "cifar100": 0.02,
        "pets": 0.1,
        "flowers": 0.1,
    }
    assert {own.batch for own in found.values()} == {512}
    assert found["pets"].optimizer.warmup == "100 steps"
    assert found["pets"].optimizer.momentum == 0.9


def test_vtab_has_its_nineteen_tasks_in_three_groups() -> None:
    protocol = with_datasets("vtab", VTAB).transfer.protocol
    assert {group: len(names) for group, names in protocol.groups.items()} == {
        "natural": 7,
        "specialised": 4,
        "structured": 8,
    }
    assert isinstance(protocol, FinetuneProtocol)
    assert (protocol.train_samples, protocol.held_out) == (1000, 0.2)
    assert protocol.learning_rates == (0.01,), "the paper's one setting for all tasks"
    assert protocol.duration == "2_500 steps"


def test_a_vtab_task_may_choose_on_800_images_against_200(tmp_path: Path) -> None:
    """By the overrides that the file's head names."""
    head = (ROOT / "configs/transfer/vtab.yaml").read_text()
    overrides = next(line for line in head.splitlines() if "vtab-1k-chosen" in line).lstrip("# ").split()
    given = ["datasets.kitti={source: digits}", "transfer.datasets=[kitti]", "transfer.seeds=[0]"]
    given.append("transfer.protocol=transfer/vtab.yaml")

    def data(config: RunConfig, name: str) -> tuple[int | None, float]:
        item = planned(config)[name]
        work = finetune.work(config, RunDir(tmp_path), item.job, item.inputs)
        return work.data.samples, work.data.held_out

    config = demo(*given, *overrides)
    rates = ("0.001", "0.003", "0.01", "0.03")
    chosen = [name for name in planned(config) if name.startswith("choose/kitti/pretrained/")]
    assert chosen == [f"choose/kitti/pretrained/lr{rate}" for rate in rates]
    # A fifth of the 1,000 is held out while a rate is chosen; all train afterwards.
    assert {data(config, name) for name in chosen} == {(1000, 0.2)}
    assert data(demo(*given), "finetune/kitti/pretrained/seed0") == (1000, 0.0)


OWN = "transfer.protocol.per_dataset={digits: {duration: 7 steps, warmup: 2 steps, learning_rates: [0.5]}, \
count: {}, orientation: {image_size: 48, train_samples: 100, held_out: 0.5}}"


def test_a_dataset_takes_its_own_settings_and_the_others_keep_theirs(tmp_path: Path) -> None:
    config = demo(OWN)
    jobs = planned(config)
    names = [name for name in jobs if name.startswith("choose/digits")]
    assert not names, "one rate leaves nothing to choose"
    assert "choose/count/scratch/lr0.03" in jobs

    def settings(name: str) -> dict[str, object]:
        item = jobs[name]
        work = finetune.work(config, RunDir(tmp_path), item.job, item.inputs)
        found = work.settings
        return {
            "steps": found.duration,
            "warmup": found.optimizer.warmup,
            "size": found.image_size,
            "samples": work.data.samples,
            "held_out": work.data.held_out,
        }

    assert settings("finetune/digits/scratch/seed0") == {
        "steps": "7 steps",
        "warmup": "2 steps",
        "size": 32,
        "samples": 200,
        "held_out": 0.0,
    }
    assert settings("choose/orientation/scratch/lr0.01") == {
        "steps": "100 steps",
        "warmup": "10 steps",
        "size": 48,
        "samples": 100,
        "held_out": 0.5,
    }
    item = jobs["evaluate/orientation/scratch/seed0"]
    judged = evaluate.work(config, item.job, item.inputs)
    assert isinstance(judged, EvaluateJob)
    assert judged.image_size == 48


def test_a_change_on_one_dataset_makes_only_that_one_due() -> None:
    before, after = planned(demo(OWN)), planned(demo(OWN.replace("100, held_out", "150, held_out")))
    changed = {name for name in after if before[name].digest != after[name].digest}
    assert {name.split("/")[1] for name in changed if "/" in name} == {"orientation"}


def test_settings_written_for_one_dataset_are_the_same_as_written_for_all() -> None:
    here = planned(demo("transfer.protocol.duration=7 steps", "transfer.protocol.optimizer.warmup=2 steps"))
    there = planned(
        demo(
            "transfer.protocol.per_dataset={digits: {duration: 7 steps, warmup: 2 steps}, count: {}, "
            "orientation: {}}"
        )
    )
    for name in ("choose/digits/scratch/lr0.1", "finetune/digits/pretrained/seed1"):
        assert here[name].digest == there[name].digest
    assert here["finetune/count/scratch/seed0"].digest != there["finetune/count/scratch/seed0"].digest


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("transfer.protocol.micro_batch=8", set()),
        ("transfer.protocol.precision=bf16", {"choose", "finetune", "evaluate", "compare"}),
        ("transfer.protocol.average=0.99", {"choose", "finetune", "evaluate", "compare"}),
        ("transfer.protocol.groups={all: [digits, count, orientation]}", {"compare"}),
    ],
)
def test_what_a_protocols_setting_makes_due(override: str, stages: set[str]) -> None:
    before, after = planned(demo()), planned(demo(override))
    assert {name.split("/")[0] for name in after if before[name].digest != after[name].digest} == stages


def test_micro_batch_precision_and_average_reach_the_training(tmp_path: Path) -> None:
    config = demo(*(f"transfer.protocol.{key}" for key in ("micro_batch=8", "precision=bf16", "average=0.5")))
    item = planned(config)["choose/digits/scratch/lr0.1"]
    settings = finetune.work(config, RunDir(tmp_path), item.job, item.inputs).settings
    assert (settings.micro_batch, settings.engine.precision, settings.average) == (8, "bf16", 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transfer.protocol.per_dataset={digit: {}}"], "no settings for digits, only for digit"),
        (["transfer.protocol.per_dataset.digits={durtion: 1 steps}"], "nearest: duration"),
        (["transfer.protocol.durtion=1 steps"], "nearest: duration"),
        (["transfer.protocol.groups={a: [digits]}"], "count is in no group"),
        (["transfer.protocol.groups={a: [digits], b: [digits]}"], "digits is in two groups"),
        (["transfer.protocol.micro_batch=5"], "batch 32 is no multiple of micro_batch 5"),
        (["transfer.protocol.optimizer.warmup=101 steps"], "a warm-up of 101 steps in a training of 100"),
        (["transfer.protocol.kind=gnn"], "transfer.protocol.kind is 'gnn'; known"),
        (["transfer.protocol=transfer/knn.yaml"], "set transfer.seeds="),
        (["transfer.protocol=transfer/knn.yaml", "transfer.protocol.shots=3"], "unknown key"),
        (["transfer.protocol=transfer/few_shot.yaml", "transfer.protocol.shots=0"], "greater than or equal"),
        (["transfer.protocol=transfer/linear.yaml", "transfer.protocol.l2=[1, 1]"], "different from each"),
    ],
)
def test_what_cannot_act_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        demo(*overrides)


def test_seeds_of_a_probe_count_where_they_draw_something() -> None:
    config = demo("transfer.protocol=transfer/knn.yaml", "transfer.protocol.train_samples=50")
    assert config.transfer.seeds == (0, 1, 2)
    views = []
    for seed in (0, 1):
        item = planned(config)[f"evaluate/digits/scratch/seed{seed}"]
        work = evaluate.work(config, item.job, item.inputs)
        assert isinstance(work, ProbeJob)
        views.append(work.train)
    assert views[0].samples == 50
    assert views[0] != views[1]


def test_a_probe_needs_no_training_but_the_pretraining() -> None:
    config = demo("transfer.protocol=transfer/few_shot.yaml", "transfer.datasets=[digits]")
    jobs = planned(config)
    stages = Counter(item.job.stage for item in jobs.values())
    assert stages == {"prepare": 2, "pretrain": 1, "evaluate": 6, "compare": 1}
    pretrained, scratch = jobs["evaluate/digits/pretrained/seed1"], jobs["evaluate/digits/scratch/seed1"]
    assert dict(pretrained.job.inputs) == {"data": job_name("digits"), "model": "pretrain"}
    assert dict(scratch.job.inputs) == {"data": job_name("digits")}
    works = [evaluate.work(config, item.job, item.inputs) for item in (pretrained, scratch)]
    assert all(isinstance(work, ProbeJob) and work.train.split == "train" for work in works)
    assert [work.weights is None for work in works] == [False, True]


def test_a_probes_settings_are_part_of_what_it_is() -> None:
    shots = [f"transfer.protocol.shots={count}" for count in (5, 5, 10)]
    found = [
        planned(demo("transfer.protocol=transfer/few_shot.yaml", text))[
            "evaluate/digits/scratch/seed0"
        ].digest
        for text in shots
    ]
    assert found[0] == found[1] != found[2]

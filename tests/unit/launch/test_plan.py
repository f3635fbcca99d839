"""What a plan says, against arithmetic done by hand and against what really happens."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from launch.cli import app
from launch.plan import plan_config
from launch.plan_answer import Given
from launch.plan_devices import GIB, find_device
from launch.plan_show import duration, plan_json, print_plan
from launch.plan_time import Measurement, measure_run, measured_rate
from pipeline.config_io import load_config
from pipeline.errors import ConfigError, UserError
from pipeline.train.checkpoint import outlived
from tests.helpers.synthetic_run import synthetic_config, write_synthetic_run

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "configs" / "demo.yaml"
RUNS = sorted((ROOT / "configs" / "runs").glob("*.yaml"))


def plan(*overrides: str, **given: Any) -> Any:
    own = ["root=nowhere", "pretrain.duration=1000 steps", "pretrain.batch=128"]
    return plan_config(load_config(DEMO, [*own, *overrides]), Given(**given))


def test_the_training_is_what_the_settings_say() -> None:
    training = plan().training
    assert (training.steps, training.images, training.epochs) == (1000, 128_000, 6.4)
    assert (training.micro_batch, training.accumulation, training.classes) == (64, 1, 200)
    # 17 tokens of width 128, 6 blocks, patches of 8: by hand.
    block = 17 * (4 * 128**2 + 2 * 128 * 512) + 2 * 17**2 * 128
    assert training.macs == 16 * 3 * 64 * 128 + 6 * block
    assert training.exaflops == pytest.approx(6 * training.macs * 128_000 / 1e18)


def test_nodes_and_gpus_make_the_gang_and_its_device() -> None:
    found = plan("pretrain.batch=4096", nodes=2, gpus_per_node=8)
    assert (found.workers, found.device.name, found.training.micro_batch) == (16, "h100", 256)
    assert any("taken to be h100" in line for line in found.assumptions)


def test_a_batch_that_does_not_divide_is_refused_as_the_run_would() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        plan(nodes=3, gpus_per_node=1)


def test_nodes_that_read_the_same_chunks_are_warned_of() -> None:
    """64 lanes by default: 128 nodes read each of them twice, whether one rank or eight stand on each."""
    many = dict(nodes=128, gpus_per_node=8)
    (warning,) = plan("pretrain.batch=4096", **many).warnings
    assert warning.startswith("128 nodes read from 64 lanes: each chunk is read by 2.0 nodes;")
    assert "pretrain.order.lanes=128" in warning
    assert not plan("pretrain.batch=4096", "pretrain.order.lanes=128", **many).warnings
    assert not plan("pretrain.batch=4096", nodes=64, gpus_per_node=8).warnings


def test_a_given_speed_and_price_are_taken_as_they_are() -> None:
    found = plan(images_per_s=64.0, price=2.0)
    assert found.hours == pytest.approx(128_000 / 64 / 3600)
    assert found.rate.how.startswith("given")
    assert found.price == pytest.approx(2.0 * found.device_hours)
    assert found.device_hours == pytest.approx(2 * found.hours + found.transfer.device_hours)


def test_an_assumed_speed_says_device_share_and_source() -> None:
    found = plan("pretrain.engine.precision=bf16", device="a100", mfu=0.5)
    assert found.rate.images_per_s == pytest.approx(2 * 312e12 * 0.5 / (6 * found.training.macs))
    assert "50% of a100's 312 TFLOP/s in bf16" in found.rate.how
    assert "data sheet" in found.rate.how


@pytest.mark.parametrize(("every", "keep", "rare"), [(50, 2, 200), (100, 3, 100), (70, 1, 300), (1, 2, 7)])
def test_checkpoints_that_stay_for_good_are_counted(every: int, keep: int, rare: int) -> None:
    own = [f"{name}={value}" for name, value in (("every", f"{every} steps"), ("keep", keep))]
    found = plan(
        *(f"pretrain.checkpoint.{line}" for line in own), f"pretrain.checkpoint.keep_every={rare} steps"
    )
    # What the trainer does, by its own rule: at each save, all that stay and the one in the making.
    present: set[int] = set()
    most = 0
    for step in sorted({*range(every, 1001, every), 1000}):
        most = max(most, len(present) + 1)
        present.add(step)
        present -= set(outlived(present, keep, rare))
    assert found.disk.kept_for_good == 1000 // rare
    # The newest, and the one in the making, may be among those for good: less by those at most.
    assert most <= found.disk.checkpoints // found.disk.checkpoint <= most + keep + 1
    assert found.disk.total >= found.disk.checkpoints


def test_the_best_checkpoint_and_its_weights_are_counted() -> None:
    own = plan("pretrain.validation.every=10 steps")
    best = plan("pretrain.validation.every=10 steps", "pretrain.checkpoint.keep_best=loss")
    assert best.disk.checkpoints == own.disk.checkpoints + own.disk.checkpoint
    assert best.disk.weights == 2 * own.disk.weights


def test_copies_elsewhere_are_counted_apart(tmp_path: Path) -> None:
    own, copied = plan(), plan(f"pretrain.checkpoint.remote={tmp_path}")
    assert (own.disk.remote, copied.disk.remote) == (0, 3 * own.disk.checkpoint)
    assert copied.disk.checkpoints == own.disk.checkpoints + 2 * own.disk.checkpoint, "those of the copier"
    assert copied.disk.total == own.disk.total + 2 * own.disk.checkpoint
    out = io.StringIO()
    print_plan(copied, Console(file=out, width=160))
    assert "copies at checkpoint.remote, not in the sum" in out.getvalue()


def test_recomputing_costs_a_third_more() -> None:
    own = plan(device="h100")
    recomputing = plan("pretrain.engine.activation_checkpointing=true", device="h100")
    assert recomputing.rate.images_per_s == pytest.approx(own.rate.images_per_s * 3 / 4)
    assert recomputing.memory.activations < own.memory.activations


def test_a_measured_run_is_scaled_to_more_ranks_and_said_so(tmp_path: Path) -> None:
    config = synthetic_config(tmp_path)
    made = write_synthetic_run(config)
    found = measure_run(made.run.path)
    assert found is not None
    assert (found.world, found.images_per_s) == (1, 400.0)
    again = plan_config(config, Given())
    assert again.rate.images_per_s == pytest.approx(400.0)
    assert "measured in" in again.rate.how
    twice = plan_config(config, Given(nodes=2))
    # Two ranks need the engine that can join them; the synthetic run's default can.
    assert twice.rate.images_per_s == pytest.approx(800.0)
    assert "scaled in proportion to 2" in twice.rate.how


def test_a_measurement_on_four_ranks_is_divided_by_four() -> None:
    settings = load_config(DEMO).pretrain
    found = Measurement("x", settings.model.name, settings.image_size, "float32", 4, 1000.0, 6e6)
    rate = measured_rate(found, 12e6, settings, find_device("cpu"), 2)
    # Half the ranks, twice the operations an image.
    assert rate.images_per_s == pytest.approx(250.0)
    assert rate.mfu == pytest.approx(250 * 12e6 / (2 * 0.08e12))


def test_a_directory_without_a_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pre-training"):
        plan(measured=tmp_path)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="h100, h200"):
        find_device("h1000")


def test_epochs_of_an_unknown_dataset_need_its_size() -> None:
    shards = 'datasets.new={source: webdataset, train: "a-{0..3}.tar", test: b.tar}'
    with pytest.raises(UserError, match="--train-samples"):
        plan(shards, "pretrain.dataset=new", "pretrain.duration=2 epochs")
    found = plan(shards, "pretrain.dataset=new", "pretrain.duration=2 epochs", train_samples=1280, classes=7)
    assert (found.training.steps, found.training.classes) == (20, 7)


def test_a_mixture_counts_as_its_datasets_together() -> None:
    mixture = ("pretrain.dataset=null", "pretrain.mixture={glyphs: 3, digits: 1}")
    found = plan(*mixture, "pretrain.duration=2 epochs", "pretrain.batch=100")
    assert found.training.steps == round(2 * (20_000 + 1198) / 100)
    assert found.training.classes == 210
    assert any("digits + glyphs are taken to have 210 different classes" in s for s in found.assumptions)
    shards = 'datasets.new={source: webdataset, train: "a-{0..3}.tar", test: b.tar}'
    with pytest.raises(UserError, match="glyphs \\+ new, whose size is not known"):
        plan(
            shards,
            "pretrain.dataset=null",
            "pretrain.mixture={glyphs: 3, new: 1}",
            "pretrain.duration=2 epochs",
        )


def test_what_cannot_fit_is_said_with_the_nearest_that_does() -> None:
    overrides = ("pretrain.batch=65536", "pretrain.engine.precision=bf16")
    found = plan(*overrides, device="h100", memory_gib=8.0)
    assert found.fits is False
    assert any("does not fit" in line for line in found.warnings)
    assert found.nearest is not None
    again = plan(*overrides, *found.nearest.overrides, device="h100", memory_gib=8.0)
    assert again.fits
    assert again.memory.total == found.nearest.memory.total <= 8 * GIB


def test_json_holds_all_that_the_text_shows() -> None:
    found = plan("pretrain.batch=65536", device="h100", memory_gib=4.0, price=1.0)
    value = json.loads(json.dumps(plan_json(found)))
    assert value["memory"]["total"] == found.memory.total
    assert value["nearest"]["overrides"] == list(found.nearest.overrides)
    console = Console(record=True, width=160, file=io.StringIO())
    print_plan(found, console)
    text = console.export_text()
    for piece in (f"{found.training.parameters:,} parameters", "exaFLOPs", "do this:", "assumed:", "price"):
        assert piece in text


@pytest.mark.parametrize(
    "hours, text", [(0.001, "3.6 s"), (0.5, "30.0 min"), (5, "5.0 h"), (240, "10.0 days")]
)
def test_durations_read_as_people_say_them(hours: float, text: str) -> None:
    assert duration(hours) == text


# ---------------------------------------------------------------- the runs that are shipped


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_runs_load_fit_and_say_what_to_expect(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    classes = 21_843 if path.stem.endswith("i21k") else 1000
    share = 0.15 if path.stem.startswith("bit") else None
    found = plan_config(config, Given(classes=classes, device="h100", mfu=share))
    assert found.fits
    assert not found.warnings
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    for word in ("vitline run configs/runs/" + path.name, "Hardware:", "an estimate", "Expected:"):
        assert word in head, f"{path.name}: no {word!r} in its head"
    assert duration(found.hours) in head, f"{path.name}: the plan says {duration(found.hours)}"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_runs_say_what_would_run(path: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["run", str(path), f"root={tmp_path}", "--dry-run", "--json"])
    assert done.exit_code == 0, done.output
    jobs = {job["name"]: job["state"] for job in json.loads(done.stdout)}
    assert jobs["pretrain"] == "due"
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_shipped_runs_are_those_of_the_paper() -> None:
    """Parameters of the paper specification's table, exaFLOPs of Table 6 scaled to ImageNet-21k."""
    known = {
        "vit_b16_i21k": (103_186_515, 17.563),
        "vit_b32_i21k": (104_843_091, 4.408),
        "vit_l16_i21k": (326_740_307, 61.554),
        "vit_l32_i21k": (328_949_075, 15.377),
        "vit_h14_i21k": (660_385_363, 167.294),
        "bit_r50x1_i21k": (68_256_659, 4.087),
    }
    for name, (parameters, gmacs) in known.items():
        config = load_config(ROOT / "configs" / "runs" / f"{name}.yaml")
        training = plan_config(config, Given(classes=21_843)).training
        assert training.parameters == parameters
        assert training.macs / 1e9 == pytest.approx(gmacs, abs=1e-3)
        assert training.steps * 4096 == pytest.approx(90 * 14.2e6, rel=1e-3)

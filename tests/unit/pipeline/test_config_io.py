"""Loading configurations: precedence, what a typo gets, and a resolved file that loads to the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import to_steps
from pipeline.config_io import dump_config, load_config
from pipeline.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml")) + sorted(
    (ROOT / "configs" / "runs").glob("*.yaml")
)

MINIMAL = """
name: t
datasets:
  glyphs: {source: glyphs}
pretrain: {dataset: glyphs, model: {name: vit_ti8}, duration: 10 steps, batch: 8}
transfer:
  datasets: [glyphs]
  protocol: {name: p, image_size: 32, duration: 2 steps, batch: 4, learning_rates: [1e-2]}
"""


def write(tmp_path: Path, text: str, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    load_config(path)


def test_the_resolved_file_loads_to_an_equal_configuration(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", ["seed=3"])
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_precedence_base_file_override(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    path = write(tmp_path, "extends: base.yaml\nname: child\npretrain: {batch: 16}\n", "child.yaml")
    config = load_config(path, ["pretrain.model.name=vit_s8"])
    assert (config.name, config.pretrain.batch, config.pretrain.model.name) == ("child", 16, "vit_s8")
    assert config.pretrain.duration == "10 steps"


def test_a_file_named_inside_takes_the_whole_place_and_can_be_overridden(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL, "base.yaml")
    write(
        tmp_path,
        "{name: other, image_size: 48, duration: 9 steps, batch: 4, learning_rates: [0.2]}",
        "p.yaml",
    )
    path = write(tmp_path, "extends: base.yaml\ntransfer: {protocol: p.yaml}\n", "child.yaml")
    protocol = load_config(path, ["transfer.protocol.batch=8"]).transfer.protocol
    assert (protocol.name, protocol.image_size, protocol.batch) == ("other", 48, 8)
    again = load_config(write(tmp_path, MINIMAL), ["transfer.protocol=p.yaml"]).transfer.protocol
    assert (again.name, again.duration) == ("other", "9 steps")


def test_nothing_of_a_replaced_protocol_stays() -> None:
    # The demo's protocol draws 200 samples; the photos' does not.
    assert load_config(ROOT / "configs" / "photos.yaml").transfer.protocol.train_samples is None


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, MINIMAL)).transfer.protocol.learning_rates == (0.01,)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.optimiser={}", r"unknown key pretrain\.optimiser; nearest: optimizer"),
        ("datasets.glyphs.clases=3", r"unknown key datasets\.glyphs\.clases; nearest: classes"),
        ("pretrain.batch=0", r"pretrain\.batch is 0: .*greater than or equal to 1"),
        ("pretrain.duration=10", r"pretrain\.duration is 10"),
        ("pretrain.duration=10 apples", "'300 steps', '90 epochs'"),
        ("pretrain.dataset=glphys", r"pretrain.dataset names 'glphys'"),
        ("datasets.glyphs.source=glyfs", r"source is 'glyfs'"),
        ("transfer.protocol.learning_rates=[0.1, 0.1]", "different from each other"),
        ("pretrain.batch", "key.path=value"),
        ("+pretrain.batch=3", "key.path=value"),
        ("seed=.nan", "seed"),
    ],
)
def test_what_a_fault_gets(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, MINIMAL), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "holds a list"),
        ("name: t\nname: u\n", "stands twice"),
        ("name: ${oc.env:HOME}\n", "interpolation"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml cannot be read"):
        load_config(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("300 steps", 300),
        ("90 epochs", 900),
        ("1_000_000 samples", 10_000),
        ("0.5 epochs", 5),
        ("1 sample", 1),
        ("0 steps", 0),
    ],
)
def test_durations_become_steps(duration: str, steps: int) -> None:
    assert to_steps(duration, batch=100, samples=1000) == steps

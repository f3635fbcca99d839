import pytest

from pipeline.config import EngineSettings
from pipeline.errors import ConfigError, EnvironmentUnfit
from pipeline.train.interface import BatchShape
from pipeline.train.zero_settings import check_version, configure

SHAPE = BatchShape(batch=24, micro_batch=3, accumulation=4)


def test_our_values_are_always_written_out() -> None:
    made = configure(EngineSettings(stage=2, precision="bf16"), SHAPE, 1.0)
    assert made["train_batch_size"] == 24
    assert made["train_micro_batch_size_per_gpu"] == 3
    assert made["gradient_accumulation_steps"] == 4
    assert made["gradient_clipping"] == 1.0
    assert made["zero_optimization"]["stage"] == 2
    assert made["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert configure(EngineSettings(), SHAPE, None)["gradient_clipping"] == 0.0


def test_additions_are_merged_in() -> None:
    settings = EngineSettings(
        deepspeed={
            "zero_optimization": {"stage": 1, "reduce_bucket_size": 1000},
            "train_batch_size": "auto",
            "comms_logger": {"enabled": False},
        }
    )
    made = configure(settings, SHAPE, 1.0)
    assert made["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 1000}
    assert made["train_batch_size"] == 24
    assert made["comms_logger"] == {"enabled": False}


@pytest.mark.parametrize(
    ("theirs", "place"),
    [
        ({"train_batch_size": 7}, "train_batch_size to 7, our own settings make it 24"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage to 0, our own settings make it 1"),
        ({"gradient_clipping": 0.5}, "gradient_clipping to 0.5"),
        ({"bf16": {"enabled": True}}, "bf16.enabled to True"),
    ],
)
def test_a_conflict_is_refused_by_name(theirs: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        configure(EngineSettings(deepspeed=theirs), SHAPE, 1.0)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offloading_to_nvme_is_refused_by_name(key: str) -> None:
    settings = EngineSettings(stage=3, deepspeed={"zero_optimization": {key: {"device": "nvme"}}})
    with pytest.raises(ConfigError, match=rf"zero_optimization\.{key}\.device to 'nvme'.*async_io"):
        configure(settings, SHAPE, 1.0)
    settings = EngineSettings(stage=3, deepspeed={"zero_optimization": {key: {"device": "cpu"}}})
    assert configure(settings, SHAPE, 1.0)["zero_optimization"][key] == {"device": "cpu"}


@pytest.mark.parametrize(
    ("version", "fault"),
    [
        ("0.17.0", "#7645"),
        ("0.18.5", "#7837"),
        ("0.18.9", "#7985"),
        ("0.19.2", "#8035"),
        ("0.19.7", None),
        ("0.20.0", None),
    ],
)
def test_a_known_fault_is_named(version: str, fault: str | None) -> None:
    with pytest.raises(EnvironmentUnfit) as caught:
        check_version(version)
    assert (f"(DeepSpeed {fault})" in caught.value.found) if fault else ("#" not in caught.value.found)


def test_versions_outside_of_the_tested_range_are_refused() -> None:
    check_version("0.19.8")
    check_version("0.19.9+abc")
    for version in ("0.18.6", "0.19.7", "0.20.0", "1.0.0"):
        with pytest.raises(EnvironmentUnfit, match=f"deepspeed {version}"):
            check_version(version)

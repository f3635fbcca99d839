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


def test_processors_keep_gradients_where_they_are_at_stage_1_unless_asked_otherwise() -> None:
    def made(stage: int, gpu: bool, **section: object) -> object:
        settings = EngineSettings.model_validate(
            {"stage": stage, "deepspeed": {"zero_optimization": section}}
        )
        return configure(settings, SHAPE, 1.0, gpu=gpu)["zero_optimization"].get("contiguous_gradients")

    assert made(1, gpu=False) is False
    assert made(1, gpu=False, contiguous_gradients=True) is True
    assert made(1, gpu=True) is None
    assert made(2, gpu=False) is None


@pytest.mark.parametrize(
    ("theirs", "place"),
    [
        ({"train_batch_size": 7}, "train_batch_size to 7, our own settings make it 24"),
        ({"zero_optimization": {"stage": 0}}, "zero_optimization.stage to 0, our own settings make it 1"),
        ({"gradient_clipping": 0.5}, "gradient_clipping to 0.5"),
        ({"bf16": {"enabled": True}}, "bf16.enabled to True"),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow to False"),
        ({"fp16": {"fp16_master_weights_and_grads": True}}, "fp16.fp16_master_weights_and_grads to True"),
    ],
)
def test_a_conflict_is_refused_by_name(theirs: dict[str, object], place: str) -> None:
    with pytest.raises(ConfigError, match=place):
        configure(EngineSettings(deepspeed=theirs), SHAPE, 1.0)


def test_each_precision_has_one_section_and_float32_sums() -> None:
    for precision in ("float32", "bf16", "bf16_params", "fp16"):
        made = configure(EngineSettings.model_validate({"precision": precision}), SHAPE, 1.0)
        assert made["torch_autocast"]["enabled"] == (precision == "bf16")
        assert made["bf16"]["enabled"] == (precision == "bf16_params")
        assert made["fp16"]["enabled"] == (precision == "fp16")
        assert made["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stage": 0, "precision": "bf16_params"}, "precision bf16_params at stage 0.*set stage to 1"),
        ({"stage": 0, "precision": "fp16"}, "precision fp16 at stage 0"),
        ({"kind": "plain", "precision": "bf16_params"}, "bf16_params is DeepSpeed's; set kind: zero"),
        ({"kind": "plain", "precision": "fp16"}, "fp16 is DeepSpeed's; set kind: zero"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineSettings.model_validate(settings)


def test_stage_0_clips_by_itself_and_offloads_nothing() -> None:
    assert configure(EngineSettings(stage=0), SHAPE, 0.5)["gradient_clipping"] == 0.0
    offloading = EngineSettings(
        stage=0, deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    )
    with pytest.raises(ConfigError, match="offload_optimizer at stage 0"):
        configure(offloading, SHAPE, 0.5)


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

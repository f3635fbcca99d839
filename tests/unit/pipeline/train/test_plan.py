import pytest

from pipeline.config import CheckpointSettings, ModelSettings, OptimizerSettings, TrainSettings
from pipeline.errors import ConfigError
from pipeline.train.plan import batch_shape, make_plan

MODEL = ModelSettings(name="vit_ti8")


def settings(**changes: object) -> TrainSettings:
    return TrainSettings(**{"model": MODEL, "duration": "2 epochs", "batch": 8, **changes})  # type: ignore[arg-type]


def test_durations_become_steps() -> None:
    plan = make_plan(
        settings(
            optimizer=OptimizerSettings(warmup="80 samples"),
            checkpoint=CheckpointSettings(every="1 epochs"),
            log_every="0 steps",
        ),
        samples=100,
        world=2,
        seed=3,
    )
    assert (plan.steps, plan.warmup, plan.save_every, plan.log_every) == (25, 10, 12, 1)
    assert (plan.shape.micro_batch, plan.shape.accumulation) == (4, 1)


@pytest.mark.parametrize(
    ("batch", "micro", "world", "accumulation"),
    [(12, None, 3, 1), (12, 2, 3, 2), (12, 1, 1, 12), (4096, 32, 8, 16)],
)
def test_the_batch_is_world_times_micro_batch_times_accumulation(
    batch: int, micro: int | None, world: int, accumulation: int
) -> None:
    shape = batch_shape(batch, micro, world)
    assert shape.accumulation == accumulation
    assert shape.micro_batch * shape.accumulation * world == batch


@pytest.mark.parametrize(
    ("batch", "micro", "world", "nearest"), [(13, None, 2, 12), (15, 4, 2, 16), (3, 2, 4, 8), (20, 3, 4, 24)]
)
def test_a_batch_that_does_not_divide_names_the_nearest(
    batch: int, micro: int | None, world: int, nearest: int
) -> None:
    with pytest.raises(ConfigError) as caught:
        batch_shape(batch, micro, world)
    assert f"batch {batch} does not divide by {world} ranks" in caught.value.found
    assert f"set batch to {nearest}, the nearest that works" in caught.value.do
    batch_shape(nearest, micro, world)


def test_more_ranks_than_samples() -> None:
    with pytest.raises(ConfigError, match=r"(?s)4 ranks for a training set of 3 samples.*set workers to 3"):
        make_plan(settings(), samples=3, world=4, seed=0)


def test_a_training_without_steps_or_with_a_warm_up_that_never_ends() -> None:
    with pytest.raises(ConfigError, match="at least one step"):
        make_plan(settings(duration="0 steps"), samples=100, world=1, seed=0)
    with pytest.raises(ConfigError, match="a warm-up of 30 steps and a cool-down of 0 in a training of 25"):
        make_plan(settings(optimizer=OptimizerSettings(warmup="30 steps")), samples=100, world=1, seed=0)

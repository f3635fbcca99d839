import math

import pytest

from model.zoo import create_model
from pipeline.config import OptimizerSettings
from pipeline.train.optim import learning_rate, make_groups, rules


def test_each_layer_below_the_top_is_slower() -> None:
    module = create_model("vit_ti8", num_classes=3, image_size=16, width=16, depth=2, heads=2, mlp=32)
    groups = make_groups(module.named_parameters(), rules(OptimizerSettings()), 0.5)
    scale = {name: group.rate_scale for group in groups for name in group.names}
    assert len(scale) == len(list(module.parameters()))
    assert scale["head.weight"] == scale["norm.bias"] == 1.0
    assert scale["blocks.1.mlp.up.weight"] == 0.5
    assert scale["blocks.0.attention.qkv.bias"] == 0.25
    assert scale["embedding.patch.weight"] == scale["positions.table"] == 0.125


def test_both_conventions_of_weight_decay() -> None:
    # big_vision's 1e-4 at a peak of 1e-3 is AdamW's 0.1 (paper-side note in optim.py's sources).
    settings = OptimizerSettings(learning_rate=1e-3, weight_decay=1e-4, decay_times="schedule")
    assert rules(settings)[0][2] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="decay_times"):
        OptimizerSettings(name="sgd", decay_times="schedule")


def test_reciprocal_square_root_with_a_cool_down() -> None:
    settings = OptimizerSettings(schedule="rsqrt", learning_rate=1.0, timescale=100, cooldown="50 steps")
    rates = [learning_rate(step, 400, 50, settings, 50) for step in range(1, 401)]
    assert rates[49] == 1.0
    assert rates[149] == pytest.approx(1 / math.sqrt(2))
    assert rates[374] == pytest.approx(0.5 / math.sqrt(1 + 325 / 100))
    assert rates[-1] == 0.0
    with pytest.raises(ValueError, match="cooldown has no effect"):
        OptimizerSettings(schedule="cosine", cooldown="1 epochs")

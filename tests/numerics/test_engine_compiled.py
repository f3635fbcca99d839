"""Blocks that are compiled train the same losses as a bare PyTorch loop, in every precision and at stages 0
to 2, on two ranks; at the same bounds as blocks that are not (test_engine.py, test_engine_modes.py)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.engine_world import FLOAT32, Seen, check, run_world

pytestmark = pytest.mark.slow

BF16, FLOAT16 = 1e-2, 3e-3
CASES: dict[str, tuple[dict[str, Any], float]] = {
    "stage 0": ({"stage": 0}, FLOAT32),
    "stage 1": ({}, FLOAT32),
    "stage 2": ({"stage": 2}, FLOAT32),
    "recomputed": ({"activation_checkpointing": True}, FLOAT32),
    "bf16": ({"precision": "bf16"}, BF16),
    "bf16 parameters": ({"precision": "bf16_params"}, BF16),
    "fp16": ({"precision": "fp16", "deepspeed": {"fp16": {"initial_scale_power": 8}}}, FLOAT16),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    cases = [
        {"name": name, "engine": {**engine, "compile": True}, "accumulation": 2, "steps": 5}
        for name, (engine, _) in CASES.items()
    ]
    return run_world(2, cases, tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("name", CASES)
def test_compiled_blocks_train_the_same(compiled: Seen, name: str) -> None:
    assert compiled[name]["graphs"] > 0, "nothing was compiled"
    check(compiled, name, CASES[name][1])

"""Thirty steps on a CPU: equal to a loop written here in plain PyTorch, and to the numbers of the past.

The numbers are in tests/data/golden/loss-cpu.json. After a change that is meant to change them:
WRITE_GOLDEN=1 python -m pytest -n0 tests/unit/pipeline/train/test_golden_loss.py
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.zoo import create_model
from pipeline.config import AugmentSettings, DataView, OptimizerSettings, OrderSettings
from pipeline.data.loader import TrainLoader
from pipeline.data.view import open_view
from pipeline.events import read_events
from pipeline.rundir import JobDir
from pipeline.train.worker import run

GOLDEN = Path(__file__).resolve().parents[3] / "data" / "golden" / "loss-cpu.json"
STEPS = 30
OPTIMIZER = OptimizerSettings(learning_rate=2e-3, weight_decay=0.1, schedule="constant", clip_norm=0.5)


@pytest.fixture
def bare(run_dir: Path) -> list[float]:
    """Losses of the same training, with nothing of pipeline.train in it."""
    generator = torch.Generator().manual_seed(1)
    sizes = {"width": 32, "depth": 2, "heads": 2, "mlp": 64}
    module = create_model("vit_ti8", num_classes=6, image_size=16, generator=generator, **sizes)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, betas=(0.9, 0.999), weight_decay=0.1)
    loader = TrainLoader(
        open_view(DataView(path="data/glyphs", split="train"), run_dir),
        batch=12,
        image_size=16,
        augment=AugmentSettings(),
        order=OrderSettings(),
        seed=1,
        threads=1,
        bad_samples=0.0,
        rank=0,
        world=1,
        steps=STEPS,
    )
    losses = []
    with loader:
        for batch in loader:
            logits = module((batch.images.float() - 127.5) / 127.5)
            loss = F.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_thirty_steps_are_those_of_a_bare_loop_and_of_the_past(
    run_dir: Path, add_job: Callable[..., JobDir], bare: list[float], accumulation: int
) -> None:
    job = add_job(optimizer=OPTIMIZER, duration=f"{STEPS} steps", micro_batch=12 // accumulation)
    run(run_dir, "aaaa", device="cpu")
    losses = [event["loss"] for event in read_events(job.events)[0] if event["event"] == "progress"]
    assert losses == pytest.approx(bare, rel=1e-5)
    assert losses[-1] < 0.98 * losses[0], "nothing was learned"
    if os.environ.get("WRITE_GOLDEN") and accumulation == 1:
        head = {
            "torch": torch.__version__,
            "device": "cpu",
            "dtype": "float32",
            "made_by": Path(__file__).name,
        }
        GOLDEN.write_text(json.dumps({**head, "losses": losses}, indent=1) + "\n")
    # Other processors and versions of PyTorch add up in another order; thirty steps amplify that.
    assert losses == pytest.approx(json.loads(GOLDEN.read_text())["losses"], rel=1e-3)

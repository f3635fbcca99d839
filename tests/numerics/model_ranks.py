"""What each rank of test_model_partitioned.py runs: models built in parts, filled, run under ZeRO stage 3.

    torchrun --nproc-per-node N model_ranks.py OUT.json

Rank 0 writes, for each variant, the parameters that differ from those of an ordinary build, and the largest
difference of the logits.
"""

import json
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from model.zoo import build, model_config

VARIANTS: dict[str, dict[str, object]] = {
    "token": {},
    "relative": {"positions": "relative"},
    "map": {"pool": "map", "positions": "learned2d", "positions_at": "layers"},
    "hidden": {"representation": True, "qk_norm": True},
    "root": {"stem": (), "patch": 2},
}
SMALL = {"num_classes": 5, "image_size": 16, "width": 32, "depth": 2, "heads": 2, "mlp": 64}


def settings() -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "train_batch_size": 2 * dist.get_world_size(),
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }


def whole(parameter: nn.Parameter) -> object:
    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)


def compare(options: dict[str, object]) -> dict[str, object]:
    config = model_config("vit_ti8", **{**SMALL, **options})  # type: ignore[arg-type]
    expected = build(config, torch.Generator().manual_seed(3)).eval()
    with deepspeed.zero.Init(config_dict_or_path=settings()):
        model = build(config, initialise=False)
    assert all(parameter.numel() == 0 for parameter in model.parameters()), "parameters are in parts"
    model.init_weights(torch.Generator().manual_seed(3), whole)  # type: ignore[arg-type]
    for head in (expected.head, model.head):
        with torch.no_grad(), whole(head.weight):  # type: ignore[attr-defined]
            head.weight.normal_(generator=torch.Generator().manual_seed(9))
    differing = []
    for name, parameter in model.named_parameters():
        with whole(parameter):  # type: ignore[attr-defined]
            if not torch.equal(parameter.data, expected.get_parameter(name)):
                differing.append(name)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters()),
        config=settings(),
        dist_init_required=False,
    )
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    logits = engine(images)
    difference = float((logits - expected(images)).detach().abs().max())
    engine.backward(logits.square().sum())
    engine.step()
    return {"differing": differing, "largest": difference, "features": list(model.features(images).shape)}


def main() -> None:
    deepspeed.ops.__compatible_ops__ = {}  # otherwise the first call compiles an op for minutes
    dist.init_process_group("gloo")
    deepspeed.init_distributed("gloo", dist_init_required=False)
    found = {name: compare(options) for name, options in VARIANTS.items()}
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""DeepSpeed's configuration, and which versions of it we trust; deepspeed itself is not needed for this.

Our own values (batch, clipping, precision, accumulation, stage) are always written out, because
DeepSpeed's defaults have changed between versions (clipping went from off to 1.0 in 0.19.3). What the
user adds under `engine.deepspeed` is merged in; a key that both set differently is refused by name.

Stage 0 is refused with the `bf16` section, with which it applies one update with zero gradients while it
initialises (and with `fp16`, whose stage 0 is another optimizer). Clipping is our own there: DeepSpeed
neither says the norm nor guards against gradients that are not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import EngineSettings
from pipeline.errors import ConfigError, EnvironmentUnfit
from pipeline.train.interface import BatchShape

# fragments.py reads private attributes; these versions have them as we know them.
OLDEST, BEYOND = (0, 19, 8), (0, 20, 0)
# (first version without it, what is wrong before, DeepSpeed's number); the first that applies is named.
FAULTS = (
    ((0, 18, 2), "fp16's fused optimizer may leave out an update without an overflow", 7645),
    ((0, 18, 6), "bf16 at stage 0 divides gradients by 65,536 and adds them up over steps", 7837),
    ((0, 19, 0), "gradients of the last micro-batch are left out of the average over ranks", 7985),
    ((0, 19, 3), "one gradient that is not finite spoils the bf16 masters for good", 8035),
)


def check_version(version: str) -> None:
    """Refuse a DeepSpeed that fragments.py was not tested with."""
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:3])
    if not OLDEST <= numbers < BEYOND:
        oldest, beyond = (".".join(map(str, bound)) for bound in (OLDEST, BEYOND))
        known = [f": {what} (DeepSpeed #{number})" for fixed, what, number in FAULTS if numbers < fixed]
        raise EnvironmentUnfit(
            f"deepspeed {version}{known[0] if known else ''}",
            f"a version from {oldest} on and before {beyond}, which the training engine was tested with",
            f"pip install 'deepspeed>={oldest},<{beyond}'",
        )


def configure(
    settings: EngineSettings, shape: BatchShape, clip_norm: float | None, *, gpu: bool = True
) -> dict[str, Any]:
    """DeepSpeed's configuration: ours, with the user's additions merged in. `gpu`: where it will run."""
    _refuse_offload(settings)
    ours: dict[str, Any] = {
        "train_batch_size": shape.batch,
        "train_micro_batch_size_per_gpu": shape.micro_batch,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_clipping": clip_norm or 0.0 if settings.stage else 0.0,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": settings.stage},
        # Momentum SGD is not on DeepSpeed's list of tested optimizers; our self-test tests it.
        "zero_allow_untested_optimizer": True,
        # bf16 is autocast: parameters stay float32. bf16_params and fp16 keep a rounded working copy.
        "torch_autocast": {"enabled": settings.precision == "bf16", "dtype": "bfloat16"},
        "fp16": {"enabled": settings.precision == "fp16", "fp16_master_weights_and_grads": False},
        "bf16": {
            "enabled": settings.precision == "bf16_params",
            # Without it one gradient that is not finite spoils the masters for good.
            "check_grad_overflow": True,
            # Stage 1: into the float32 sum as soon as it is made, so no gradient is there twice.
            "immediate_grad_update": True,
            "bf16_master_weights_and_grads": False,
        },
        "data_types": {"grad_accum_dtype": "fp32"},
        "wall_clock_breakdown": False,
    }
    merged = merge(ours, settings.deepspeed, "")
    if settings.stage == 1 and not gpu:
        # Copying gradients into one buffer spares a GPU's memory holes. A processor takes the buffer's pages
        # anew in each step: a tenth of a small network's step (docs/results/train-speed.md).
        merged["zero_optimization"].setdefault("contiguous_gradients", False)
    return merged


def _refuse_offload(settings: EngineSettings) -> None:
    """State in swap files is out of reach of fragments.py, and so of checkpoints; stage 0 moves nothing."""
    section = settings.deepspeed.get("zero_optimization", {})
    for key in ("offload_optimizer", "offload_param"):
        if settings.stage == 0 and key in section:
            raise ConfigError(
                f"engine.deepspeed sets zero_optimization.{key} at stage 0, which offloads nothing",
                "a stage that offloads",
                "set engine.stage to 2 or 3, or leave it out",
            )
        if str(section.get(key, {}).get("device", "")).lower() == "nvme":
            raise ConfigError(
                f"engine.deepspeed sets zero_optimization.{key}.device to 'nvme', which needs DeepSpeed's "
                "async_io extension, built by a C++ compiler while the ranks wait, and keeps state in swap "
                "files that checkpoints cannot read",
                "state in device or host memory",
                "use more ranks, or device: cpu as in configs/deepspeed/zero3-offload.json",
            )


def merge(ours: Mapping[str, Any], theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both together; a key that both set to different values is an error that names it."""
    merged = dict(ours)
    for key, value in theirs.items():
        place = f"{where}.{key}" if where else key
        if key not in ours:
            merged[key] = value
        elif isinstance(value, Mapping) and isinstance(ours[key], Mapping):
            merged[key] = merge(ours[key], value, place)
        elif ours[key] != value and value != "auto":
            raise ConfigError(
                f"engine.deepspeed sets {place} to {value!r}, our own settings make it {ours[key]!r}",
                "one value",
                f"leave {place} out, and set batch, micro_batch, clip_norm, precision or stage instead",
            )
    return merged

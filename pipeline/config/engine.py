"""What computes a step: which engine, in which precision, split over ranks how."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Settings


class EngineSettings(Settings):
    """What computes a step."""

    kind: Literal["plain", "zero"] = Field("zero", description="plain: PyTorch on one rank; zero: DeepSpeed")
    stage: Literal[0, 1, 2, 3] = Field(
        1, description="ZeRO stage; 0: nothing is split, every rank holds all (not for bf16_params and fp16)"
    )
    precision: Literal["float32", "bf16", "bf16_params", "fp16"] = Field(
        "float32",
        description="bf16: autocast, parameters stay float32; bf16_params and fp16 (kind: zero): parameters"
        " and activations are bf16 or float16; masters, moments and sums of gradients float32; fp16 with a"
        " dynamic loss scale",
    )
    compile: bool = Field(False, description="torch.compile, block by block")
    activation_checkpointing: bool = False
    self_test: bool = Field(True, description="compare one tiny step with float32 PyTorch before training")
    deepspeed: dict[str, Any] = Field(
        {}, description="DeepSpeed's own settings; a conflict with ours is refused"
    )

    @property
    def arithmetic(self) -> Literal["float32", "bf16"]:
        """What matrix products cost on a device; float16 is as fast as bf16."""
        return "float32" if self.precision == "float32" else "bf16"

    @property
    def rounds_parameters(self) -> bool:
        """The network's parameters are a rounded working copy of float32 masters."""
        return self.precision in ("bf16_params", "fp16")

    @model_validator(mode="after")
    def _fit_together(self) -> EngineSettings:
        if self.kind == "plain" and self.rounds_parameters:
            raise ValueError(f"precision {self.precision} is DeepSpeed's; set kind: zero, or precision: bf16")
        if self.stage == 0 and self.rounds_parameters:
            raise ValueError(
                f"precision {self.precision} at stage 0: DeepSpeed's bf16 section applies an update while it"
                " starts there, and fp16 splits no float32 state; set stage to 1, or precision: bf16"
            )
        return self

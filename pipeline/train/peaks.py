"""The fastest that a device could train a network: what model FLOP utilisation is measured against.

MFU = images/s of a device × operations of an image ÷ peak operations/s of the device, with operations as
model/flops.py counts them (6 for each multiply-accumulate of the forward pass; recomputed activations are
not counted) and the peak without sparsity. A device that is not in the table has no MFU: none is invented.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from model.config import ModelConfig
from model.flops import training_exaflops

# 1e12 operations/s, dense, by a part of the name that the driver gives; NVIDIA's data sheets. The first that
# fits counts. float32 is without TF32, which PyTorch leaves off.
PEAKS: Mapping[str, Mapping[str, float]] = {
    "B200": {"bf16": 2250.0, "float32": 75.0},
    "H200": {"bf16": 989.4, "float32": 66.9},
    "H100 PCIe": {"bf16": 756.0, "float32": 51.0},
    "H100": {"bf16": 989.4, "float32": 66.9},
    "A100": {"bf16": 312.0, "float32": 19.5},
    "L40S": {"bf16": 362.0, "float32": 91.6},
    "RTX 4090": {"bf16": 165.2, "float32": 82.6},
}


def peak_tflops(device_name: str, precision: str) -> float | None:
    """1e12 operations/s of a GPU by its name; None where it is not known."""
    for part, peaks in PEAKS.items():
        if part.lower() in device_name.lower():
            return peaks.get(precision)
    return None


def top_images_per_s(config: ModelConfig, device: torch.device, precision: str) -> float | None:
    """Images/s that `device` would train at its peak; None where the peak is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    peak = peak_tflops(torch.cuda.get_device_name(device), precision)
    return None if peak is None else peak * 1e12 / (training_exaflops(config, 1) * 1e18)

"""Devices by name: published peak rates and memory, and the share of the peak that a plan assumes.

Peaks are dense (the data sheets also print twice that, with sparsity). float32 is the rate without
TF32, which PyTorch leaves off for matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.train.peaks import PEAKS

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or the processor cores of one rank.

    `memory_gib` is what a process can have, None where that is not known; `peak_tflops` maps a
    precision to 1e12 floating-point operations in a second.
    """

    name: str
    memory_gib: float | None
    peak_tflops: Mapping[str, float]
    source: str


def _gpu(name: str, memory_gib: float, listed: str, source: str) -> Device:
    """`listed`: under which name pipeline/train/peaks.py has its peaks."""
    return Device(name, memory_gib, PEAKS[listed], source)


# The driver keeps about 1 % of the memory that is printed on the box.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _gpu("h100", 79.1, "H100", "NVIDIA H100 data sheet, SXM"),
        _gpu("h200", 140.0, "H200", "NVIDIA H200 data sheet, SXM"),
        _gpu("b200", 178.0, "B200", "NVIDIA HGX B200 data sheet, one of 8"),
        _gpu("a100", 79.1, "A100", "NVIDIA A100 data sheet, 80 GB"),
        _gpu("a100-40", 39.4, "A100", "NVIDIA A100 data sheet, 40 GB"),
        _gpu("l40s", 44.4, "L40S", "NVIDIA L40S data sheet"),
        _gpu("rtx4090", 23.6, "RTX 4090", "NVIDIA Ada whitepaper, bf16 with float32 sums"),
        # A core of the AVX2 generation at 2.5 GHz: 2 units × 8 lanes × 2 operations × 2.5e9.
        Device("cpu", None, {"float32": 0.08, "bf16": 0.08}, "one AVX2 core at 2.5 GHz, computed"),
    )
}

# Share of the peak that training reaches. Published for the paper's runs on TPUv3: 43 % (L/16) and 32 %
# (H/14), from Table 2's core-days. float32 reaches more of its lower peak; a shared processor core less.
ASSUMED_MFU: Mapping[str, float] = {"bf16": 0.40, "float32": 0.60, "cpu": 0.25}


def find_device(name: str, *, memory_gib: float | None = None, cores: float = 1) -> Device:
    """The device of a name; `cores` of it for "cpu", and with another memory if one is given.

    Raises:
        UserError: the name is not known.
    """
    if name not in DEVICES:
        raise UserError(
            f"device {name!r}", f"one of {', '.join(DEVICES)}", "name the nearest, and --mfu if you know it"
        )
    device = DEVICES[name]
    if name == "cpu":
        peaks = {precision: peak * cores for precision, peak in device.peak_tflops.items()}
        device = replace(device, peak_tflops=peaks)
    return device if memory_gib is None else replace(device, memory_gib=memory_gib)


def assumed_mfu(device: Device, precision: str) -> float:
    """Share of `device`'s peak that is assumed where nothing was measured."""
    return ASSUMED_MFU["cpu" if device.name == "cpu" else precision]

"""What one node says about itself: versions, devices, memory, disk, limits, data, speed.

Runs inside a Ray task on every node. In and out go plain types only, because the nodes may hold different
versions of this code, which is one of the things to find out. Nothing here judges (doctor_checks.py does),
and nothing here raises for what it cannot find: that is written down as text instead.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fsspec
import psutil
import torch

import launch
import model
import pipeline
from launch.targets.kubernetes_pods import NODE_VARIABLE
from pipeline.config_io import digest_of, parse_config
from pipeline.data.remote import is_remote
from pipeline.errors import VitlineError

# Debugging settings that slow a run down or change its results, and are forgotten in start scripts.
LEFTOVERS = (
    "NCCL_P2P_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_IB_DISABLE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "CUDA_LAUNCH_BLOCKING",
)
_SMI_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_slowdown",
)
_READ_BYTES = 8 * 2**20


def examine(request: Mapping[str, Any]) -> dict[str, Any]:
    """All facts of this node.

    Args:
        request: `quick` (bool), `directory` (the run's, or None), `config` (plain, or None), `shards`
            (names of shards to read from) and `manifest` (a file, or None).
    """
    return {
        "host": _host(),
        "time": time.time(),
        "versions": versions(),
        "config": _config_digest(request["config"]),
        "leftovers": {name: os.environ[name] for name in LEFTOVERS if name in os.environ},
        "memory_bytes": _free_memory(),
        "shm_bytes": _free_disk(Path("/dev/shm")),
        "disk_bytes": None if request["directory"] is None else _free_disk(Path(request["directory"])),
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "gpus": gpus(),
        "data": {
            "manifest": _hash(request["manifest"]),
            "shards": {name: _read(name) for name in request["shards"]},
        },
        "gflops": None if request["quick"] else rates(),
    }


def _host() -> str:
    """As the scheduler calls this machine; in a pod the host name is the pod's."""
    named = (os.environ.get(name) for name in (NODE_VARIABLE, "SLURMD_NODENAME"))
    return next((name for name in named if name), socket.gethostname())


def versions() -> dict[str, str]:
    """Software by name; "code" is a hash over the source files of vitline."""
    found = {"python": platform.python_version(), "code": _code()}
    for name in ("vitline", "torch", "deepspeed", "ray", "mlflow", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["nccl"] = _nccl() if torch.cuda.is_available() else "none"
    return found


def _nccl() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _code() -> str:
    digest = hashlib.sha256()
    for package in (model, pipeline, launch):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            digest.update(f"{package.__name__}/{file.relative_to(root)}".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _config_digest(plain: Mapping[str, Any] | None) -> str:
    """Of the settings as this node's code fills them in."""
    if plain is None:
        return ""
    try:
        return digest_of(parse_config(plain, "the configuration").model_dump(mode="json"))
    except VitlineError as error:
        return f"refused: {error.found.splitlines()[0]}"


# ---------------------------------------------------------------- memory and disk


def _free_memory() -> int:
    """Bytes that processes may still take, by the machine and by the container's limit."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no container, or an older kernel
    return int(free)


def _free_disk(path: Path) -> int | None:
    """Free bytes where `path` is, or would be made; None where nothing is mounted."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _hash(path: str | None) -> str:
    if path is None:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError as error:
        return f"unreadable: {error.strerror}"


def _read(name: str) -> str | float:
    """MiB a second over the first bytes of a shard, or what went wrong."""
    started = time.perf_counter()
    try:
        if is_remote(name):
            with fsspec.open(name, "rb") as file:
                size = len(file.read(_READ_BYTES))
        else:
            with Path(name).open("rb") as file:
                size = len(file.read(_READ_BYTES))
    except Exception as error:  # a library of any store, with any exception
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return size / 2**20 / max(time.perf_counter() - started, 1e-6)


# ---------------------------------------------------------------- devices


def gpus(run: Callable[[Sequence[str]], str] | None = None) -> list[dict[str, str]]:
    """GPUs by nvidia-smi, a field each; empty where there is no such tool or no GPU."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        text = (run or _output)(command)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[field.strip() for field in line.split(",")] for line in text.splitlines() if line.strip()]
    return [dict(zip(_SMI_FIELDS, row, strict=True)) for row in rows if len(row) == len(_SMI_FIELDS)]


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout


def rates(seconds: float = 1.0) -> list[float]:
    """Matrix-product rate in GFLOP/s of each GPU in bf16, or of one processor core in float32."""
    if torch.cuda.is_available():
        devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
        return [_rate(device, 8192, torch.bfloat16, seconds) for device in devices]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_rate(torch.device("cpu"), 512, torch.float32, seconds / 2)]
    finally:
        torch.set_num_threads(threads)


def _rate(device: torch.device, side: int, kind: torch.dtype, seconds: float) -> float:
    a = torch.ones(side, side, device=device, dtype=kind)
    _product(a, device)  # the first one loads libraries
    began, products = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < seconds or not products:
        _product(a, device)
        products += 1
    return 2 * side**3 * products / max(spent, 1e-9) / 1e9


def _product(a: torch.Tensor, device: torch.device) -> None:
    torch.mm(a, a)
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""Which rank this process is, and the few words that ranks exchange outside of DeepSpeed.

Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; nobody else does. torchrun, Ray Train
and Slurm launchers all set them. A process without them is the only rank.

`torch.distributed` is initialised here (gloo on the CPU, NCCL on GPUs) unless the caller has done it
already, as Ray Train does; one rank with the plain engine needs none. What ranks tell each other at a
step boundary goes over gloo in either case, so a flag never waits for a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from pipeline.errors import ConfigError, EnvironmentUnfit, VitlineError

# A rank that does not answer for so long is taken for dead. Above it: compiling, which one rank may
# do while the others wait (100 s on a busy CPU, minutes for a large model).
TIMEOUT = timedelta(minutes=20)


@dataclass(frozen=True)
class World:
    """One rank among `size`."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    control: dist.ProcessGroup | None = None  # gloo; None: the default group

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each of `values`, added up over ranks in float64; every rank must call it."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether any rank said so."""
        return self.sums([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in order, on every rank. Small things only: it is pickled."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's value on every rank. Small things only: it is pickled."""
        return self.gather(value)[0]

    def on_first(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0; its result on all ranks. A VitlineError there is raised on all of them."""
        result, error = None, None
        if self.rank == 0:
            try:
                result = action()
            except VitlineError as caught:
                error = caught
        result, error = self.from_first((result, error))
        if error is not None:
            raise error
        return result

    def barrier(self) -> None:
        self.sums([0.0])


@contextmanager
def join_world(
    device: str | None = None, *, needs_group: bool = False, leave: bool = True
) -> Iterator[World]:
    """This process' place among the ranks; what was initialised here is ended here.

    Args:
        device: "cpu" or "cuda"; None takes the GPU where there is one.
        needs_group: initialise torch.distributed with one rank too, as DeepSpeed wants it.
        leave: False for a process that ends at once and lets the system close its connections. gloo
            closes them with a reset, which can overtake the last words that a slower rank has yet to read.
    """
    adopted = dist.is_available() and dist.is_initialized()
    rank, size, local_rank = _place(adopted)
    where = _device(device, local_rank)
    if not adopted and (size > 1 or needs_group):
        _initialise(rank, size, local_rank, where)
    control: dist.ProcessGroup | None = None
    if size > 1 and (adopted or dist.get_backend() != "gloo"):
        made = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(made, dist.ProcessGroup), "this rank is not in the group of all ranks"
        control = made
    try:
        yield World(rank, size, local_rank, where, control)
    finally:
        if leave and not adopted and dist.is_initialized():
            dist.destroy_process_group()


def _place(adopted: bool) -> tuple[int, int, int]:
    environment = os.environ
    present = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment]
    if len(present) == 3:
        rank, size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    elif adopted:
        rank, size, local_rank = dist.get_rank(), dist.get_world_size(), 0
    elif not present:
        rank, size, local_rank = 0, 1, 0
    else:
        raise ConfigError(
            f"only {', '.join(present)} in the environment",
            "RANK, WORLD_SIZE and LOCAL_RANK, all of them or none",
            "start the worker with torchrun, or unset what is left over",
        )
    if adopted and (rank, size) != (dist.get_rank(), dist.get_world_size()):
        rank, size = dist.get_rank(), dist.get_world_size()
    return rank, size, local_rank


def _device(device: str | None, local_rank: int) -> torch.device:
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not kind.startswith("cuda"):
        return torch.device(kind)
    visible = torch.cuda.device_count()
    if not visible:
        raise EnvironmentUnfit(
            "no GPU that PyTorch can use", "a CUDA device", "use device cpu, or another node"
        )
    # Ray shows a worker only its own GPU; torchrun shows all of the node's.
    where = torch.device("cuda", local_rank % visible)
    torch.cuda.set_device(where)
    return where


def _initialise(rank: int, size: int, local_rank: int, device: torch.device) -> None:
    os.environ.setdefault("LOCAL_RANK", str(local_rank))  # DeepSpeed insists on it, on one rank too
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"{size} ranks, but no {' and no '.join(missing)} in the environment",
            "the address where rank 0 can be met",
            "start the worker with torchrun",
        )
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)

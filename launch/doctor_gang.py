"""What nodes can only find out together: clocks, shared storage, names and ports, all-reduce.

A `Member` is a Ray actor, one on each node (one for each GPU where there are any). It keeps a listening
socket between calls; everything else is told to it. Errors come back as text for doctor_together.py to judge.
"""

from __future__ import annotations

import datetime
import os
import secrets
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.rundir import write_atomic

_CONNECT_S = 5.0
_GREETING = b"vitline"
_SMALL, _LARGE = 4 * 2**20, 256 * 2**20  # bytes of an all-reduce: gloo, NCCL


class Member:
    """One rank of the gang that tests itself."""

    def __init__(self, gpu: int | None = None) -> None:
        self._gpu = gpu
        self._server: socket.socket | None = None

    def now(self) -> float:
        """This node's clock, Unix time."""
        return time.time()

    # ---------------------------------------------------------------- storage

    def write(self, directory: str, name: str) -> str:
        """Write and flush a file that the others will read; its content, or an error."""
        text = secrets.token_hex(16)
        try:
            write_atomic(Path(directory) / name, text.encode())
        except OSError as error:
            return f"error: {error.strerror}"
        return text

    def read(self, directory: str, names: Sequence[str], patience_s: float) -> list[str]:
        """Content of each file; waits for one that is not there yet."""
        deadline = time.monotonic() + patience_s
        return [self._read(Path(directory) / name, deadline) for name in names]

    def _read(self, path: Path, deadline: float) -> str:
        while True:
            try:
                return path.read_text()
            except OSError as error:
                if time.monotonic() > deadline:
                    return f"error: {error.strerror}"
                time.sleep(0.2)

    # ---------------------------------------------------------------- names and ports

    def listen(self) -> tuple[str, int]:
        """Open a port that greets whoever connects; host name and port."""
        self._server = socket.create_server(("", 0))
        threading.Thread(target=self._greet, daemon=True).start()
        return socket.gethostname(), self._server.getsockname()[1]

    def _greet(self) -> None:
        assert self._server is not None
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            with connection:
                connection.sendall(_GREETING)

    def reach(self, targets: Sequence[tuple[str, str, int]]) -> list[str]:
        """Connect to each (host name, address, port) by its address; one text each, empty if it went well."""
        return [_reach(host, address, port) for host, address, port in targets]

    def free_port(self) -> int:
        with socket.create_server(("", 0)) as server:
            return int(server.getsockname()[1])

    # ---------------------------------------------------------------- all-reduce

    def all_reduce(self, rank: int, world: int, address: str, port: int, pairs: bool) -> dict[str, Any]:
        """Bus bandwidth of the gang and of each pair of ring neighbours, in GB/s (nccl-tests' definition).

        Returns `whole`, `pairs` (rank of the left one → rate, where this rank takes part), `right` (the
        sum was) and `error`.
        """
        # A single address family and one device for each rank, as training has them.
        backend = "gloo" if self._gpu is None else "nccl"
        answer: dict[str, Any] = {"whole": None, "pairs": {}, "right": None, "error": ""}
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)
        os.environ.setdefault("NCCL_DEBUG", "WARN")
        try:
            dist.init_process_group(
                backend,
                init_method=f"tcp://{address}:{port}",
                rank=rank,
                world_size=world,
                timeout=datetime.timedelta(seconds=60),
            )
        except (RuntimeError, ValueError, OSError) as error:
            return answer | {"error": str(error).splitlines()[0]}
        try:
            answer["whole"], answer["right"] = self._bandwidth(None, world)
            for left in range(world if pairs and world > 2 else 0):
                ring = sorted({left, (left + 1) % world})
                group = dist.new_group(ring)
                if rank in ring:
                    answer["pairs"][left], _ = self._bandwidth(group, 2)
                dist.barrier()
        except RuntimeError as error:
            answer["error"] = str(error).splitlines()[0]
        finally:
            dist.destroy_process_group()
        return answer

    def _bandwidth(self, group: Any, world: int) -> tuple[float, bool]:
        device = torch.device("cpu") if self._gpu is None else torch.device("cuda", self._gpu)
        size, kind = (_SMALL, torch.float32) if self._gpu is None else (_LARGE, torch.bfloat16)
        values = torch.ones(size // kind.itemsize, device=device, dtype=kind)
        dist.all_reduce(values, group=group)
        right = bool((values == world).all())
        warm, timed = (2, 5) if self._gpu is None else (5, 20)
        for turn in range(warm + timed):
            if turn == warm:
                _wait(device)
                began = time.perf_counter()
            values.fill_(1)
            dist.all_reduce(values, group=group)
        _wait(device)
        seconds = (time.perf_counter() - began) / timed
        return size / seconds * 2 * (world - 1) / world / 1e9, right


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reach(host: str, address: str, port: int) -> str:
    try:
        with socket.create_connection((address, port), timeout=_CONNECT_S) as connection:
            if connection.recv(len(_GREETING)) != _GREETING:
                return f"{address}:{port} is somebody else"
    except OSError as error:
        return f"{address}:{port}: {error.strerror or error}"
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        return f"the name {host} does not resolve: {error.strerror or error}"
    return ""

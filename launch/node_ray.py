"""Ray's processes of one node, as children that are ours alone to stop.

`ray stop` would end every Ray process of this user on the machine. Here each node keeps the one `ray start
--block` that it started, and ends that and its descendants.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from pipeline.cluster import RAY_ENVIRONMENT

_STOP_S = 20.0
# The longest that a node which has to go waits for what runs on it to save.
DRAIN_S = 100.0
_PR_SET_PDEATHSIG = 1
# Paths of Unix sockets have at most 107 characters, and Ray adds about 75 to its directory.
_TEMP_MAX = 30
# Nothing large goes through the object store: jobs exchange paths.
_OBJECT_STORE_BYTES = 100 * 2**20


class Child:
    """A process in a group of its own, with its descendants; it ends with us, however we end."""

    def __init__(self, argv: Sequence[str], log: Path | None, environment: dict[str, str]) -> None:
        """`log` None: the child writes where we write."""
        file = log.open("ab") if log else None
        self.process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT if file else None,
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),
            env={**os.environ, **environment},
        )
        if file:
            file.close()
        self.log = log

    def poll(self) -> int | None:
        """Exit code, as a shell counts it; None while it runs."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self, grace_s: float = _STOP_S) -> None:
        """SIGTERM, and SIGKILL for what is left of it and its descendants after `grace_s`."""
        family = _family(self.process.pid)
        self.send(signal.SIGTERM)
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            family += _family(self.process.pid)
            self.process.kill()
            self.process.wait()
        # psutil compares start times, so a pid that was used again is not hit.
        _, left = psutil.wait_procs(family, timeout=2)
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=5)

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        if self.log is None or not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _die_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            # It died between fork and prctl.
            os._exit(1)

    return prepare


def start_head(address: str, job: str, temp: Path, log: Path, resources: Sequence[str]) -> Child:
    """`ray start --head` at `address` (IP:port), without dashboard."""
    ip, _, port = address.rpartition(":")
    client = free_port(ip, preferred_port(f"{job} client"))
    head = [
        "--head",
        f"--node-ip-address={ip}",
        f"--port={port}",
        "--include-dashboard=false",
        # It cannot be switched off; at least two jobs on a host do not want the same one.
        f"--ray-client-server-port={client}",
    ]
    return _ray_start([*head, *resources], ip, job, temp, log)


def start_worker(address: str, ip: str, job: str, temp: Path, log: Path, resources: Sequence[str]) -> Child:
    """`ray start` that joins the head at `address`.

    SIGTERM has it announce that the node goes, and end once nothing runs there any more.
    """
    arguments = [f"--address={address}", f"--node-ip-address={ip}", *resources]
    return _ray_start(arguments, ip, job, temp, log, drain_s=DRAIN_S)


def _ray_start(
    arguments: Sequence[str], ip: str, job: str, temp: Path, log: Path, drain_s: float = 0
) -> Child:
    agent = free_port(ip, preferred_port(f"{job} agent {temp}"))
    argv = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
        # One below: Ray opens its own directory to everybody, and the one above stays ours.
        f"--temp-dir={temp}/r",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        f"--dashboard-agent-listen-port={agent}",
        # 0: any free one; the defaults are the same ten thousand ports for every cluster of a host.
        *("--min-worker-port=0", "--max-worker-port=0"),
        *arguments,
    ]
    # Nothing is left to drain when we stop a head; Ray's default would wait 30 s for that.
    return Child(argv, log, {**ray_environment(), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_s)})


def ray_environment() -> dict[str, str]:
    """Variables that our Ray processes and drivers run with, unless the user set them."""
    wanted = {**RAY_ENVIRONMENT, "RAY_gcs_rpc_server_reconnect_timeout_s": "20"}
    return {name: value for name, value in wanted.items() if name not in os.environ}


def resource_arguments(cpus: int | None, gpus: int | None) -> list[str]:
    """What Ray may use here; it counts CPUs wrongly under Slurm when it is left to look itself."""
    given = {"--num-cpus": cpus, "--num-gpus": gpus}
    return [f"{name}={value}" for name, value in given.items() if value is not None]


def make_temp_dir(job: str) -> Path:
    """A directory for Ray's files that only this user can enter."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=f"vl{job[-8:]}-", dir=base if len(base) <= _TEMP_MAX else "/tmp"))


def remove_temp_dir(temp: Path) -> None:
    shutil.rmtree(temp, ignore_errors=True)


def make_token(path: Path) -> None:
    """Ray's token, in a file that only its owner can read; one that is there already stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def preferred_port(name: str) -> int:
    """A port that belongs to `name`, in a range that neither Ray nor the kernel hands out by itself."""
    return 20000 + zlib.crc32(name.encode()) % 10000


def free_port(ip: str, preferred: int) -> int:
    """The first port from `preferred` on that nobody listens on."""
    for port in range(preferred, preferred + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port from {preferred} on at {ip}")


def address_towards(host: str) -> str:
    """This machine's IP as `host` would see it: that of the interface on the way there.

    The machine's own name is the second choice: many resolve theirs to a loopback address. It is taken
    where `host` is a name of the scheduler's that the network does not know.
    """
    try:
        target = socket.gethostbyname(host)
    except OSError:
        target = socket.gethostbyname(socket.gethostname())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # A datagram socket sends nothing when it connects.
        probe.connect((target, 9))
        return str(probe.getsockname()[0])


def answers(address: str, timeout_s: float = 2.0) -> bool:
    """Whether something listens at `address`, IP:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=timeout_s):
            return True
    except OSError:
        return False
